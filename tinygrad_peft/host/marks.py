"""The two decorators: `hookspec` declares a hook, `hookimpl` answers it.

An answer refers to its declaration, so a host learns each hook from the answers and its callers.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, Protocol, TypeVar, overload

from tinygrad_peft.errors import PluginError
from tinygrad_peft.host.hints import is_narrower, resolved_hints, shown

__all__ = ["GROUP", "Mark", "Spec", "hookimpl", "hookspec", "marks_of", "spec_of"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
K = TypeVar("K")
F = TypeVar("F", bound=Callable[..., object])

GROUP = "tinygrad_peft"  # of the entry points
_SPEC, _MARK = f"_{GROUP}_spec", f"_{GROUP}_mark"


@dataclass(frozen=True, eq=False)
class Spec:
    """A declared hook.

    Attributes:
        function: the declaration; all answers have its signature.
        names: returns the names that an answer provides; no two plugins may provide the same one.
        check: returns the problem with an answer, given it and the arguments; "" if there is none.
    """

    function: Callable[..., object]
    names: Callable[..., Collection[str]] | None = None
    check: Callable[..., str] | None = None

    @property
    def name(self) -> str:
        """The hook's name."""
        return self.function.__name__

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The parameters, in order."""
        return inspect.signature(self.function)

    @functools.cached_property
    def hints(self) -> Mapping[str, object]:
        """The types of the parameters by name, and of the answer as "return"."""
        return typing.get_type_hints(self.function)

    @property
    def first(self) -> str | None:
        """The name of the first parameter; answers may be narrowed to a kind of it."""
        return next(iter(self.signature.parameters), None)


@overload
def hookspec(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def hookspec(
    *, check: Callable[Concatenate[R, P], str], names: Callable[[R], Collection[str]] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def hookspec(
    function: Callable[..., object] | None = None,
    *,
    check: Callable[..., str] | None = None,
    names: Callable[..., Collection[str]] | None = None,
) -> object:
    """Declare a hook by a function with the parameters and the return type of its answers.

    `check` returns the problem with an answer of the declared type, given it and the arguments; ""
    if there is none. A hook with `names` has no parameters, and is called when a plugin is
    registered: no other plugin may provide the names of an answer.
    """

    def declare(declared: F) -> F:
        setattr(declared, _SPEC, Spec(declared, names, check))
        return declared

    return declare if function is None else declare(function)


def spec_of(function: object) -> Spec:
    """Return the hook that a function declares. Raises PluginError if it is not a declaration."""
    spec = getattr(function, _SPEC, None)
    if not isinstance(spec, Spec):
        name = getattr(function, "__qualname__", repr(function))
        raise PluginError(
            f"{name}: expected the declaration of a hook, as in @hookimpl(hookspecs.adapt_module)"
        )
    return spec


class _Marker(Protocol[P, R]):
    """Takes a function with the hook's parameters, or a method with `self` before them."""

    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, P], R], /
    ) -> Callable[Concatenate[S, P], R]: ...


class _NarrowMarker(Protocol[K, P, R]):
    """Takes a function whose first parameter is a K, or a method with `self` before it."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[K, P], R], /
    ) -> Callable[Concatenate[K, P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, K, P], R], /
    ) -> Callable[Concatenate[S, K, P], R]: ...


@overload
def hookimpl(spec: Callable[P, R]) -> _Marker[P, R]: ...
@overload
def hookimpl(spec: Callable[Concatenate[K, P], R], kind: type[K]) -> _NarrowMarker[K, P, R]: ...


def hookimpl(spec: Callable[..., object], kind: object = None) -> object:
    """Mark a function as a plugin's answer to the hook `spec`; mypy checks its signature.

    With a `kind`, the function is called only if the hook's first argument is of that kind, and is
    typed so: `@hookimpl(hookspecs.adapt_module, LoraConfig)` takes
    `(config: LoraConfig, site: Site)`.

    Raises PluginError if `spec` is not a declared hook, or the function answers one already.
    """
    declared = spec_of(spec)

    def mark(function: F) -> F:
        if hasattr(function, _MARK):
            raise PluginError(f"{function.__qualname__}: expected one mark by hookimpl, got two")
        setattr(function, _MARK, (declared, kind))
        return function

    return mark


@dataclass(frozen=True)
class Mark:
    """A plugin's function that answers a hook, for any first argument or those of a kind."""

    spec: Spec
    kind: object
    function: Callable[..., object]

    def takes(self, arguments: Mapping[str, object]) -> bool:
        """Return True if the function answers for these arguments."""
        first = self.spec.first
        if first is None or not isinstance(self.kind, type):
            return True
        return isinstance(arguments[first], self.kind)

    def problems(self) -> list[str]:
        """List the differences from the declaration."""
        hook, found = self.spec.name, []
        if any(test(self.function) for test in _SUSPENDED):
            found.append(f"{hook}: expected a plain function, got an async one or a generator")
        # pluggy 1.6 ignores an argument with a default, and 1.7 fills it.
        wanted, own = _bare(self.spec.signature), _bare(inspect.signature(self.function))
        if own != wanted:
            return [*found, f"{hook}: expected {wanted} without defaults, got {own}"]
        return [*found, *(self._wrong_kind() or self._wrong_types())]

    def _wrong_kind(self) -> list[str]:
        if self.kind is None:
            return []
        if self.spec.first is None:
            return [f"{self.spec.name}: expected no kind, since the hook has no parameters"]
        general = self.spec.hints[self.spec.first]
        if isinstance(self.kind, type) and is_narrower(self.kind, general):
            return []
        return [f"{self.spec.name}: expected a kind of {shown(general)}, got {shown(self.kind)}"]

    def _wrong_types(self) -> list[str]:
        """List the annotations that contradict the declaration, as far as run time can check."""
        own = resolved_hints(self.function)
        wanted = dict(self.spec.hints)
        if self.kind is not None and self.spec.first is not None:
            wanted[self.spec.first] = self.kind
        answer = wanted.pop("return")
        found = [
            f"{self.spec.name}: {name}: expected {shown(wanted[name])}, got {shown(own[name])}"
            for name in wanted
            if name in own and not is_narrower(wanted[name], own[name])
        ]
        if "return" in own and not is_narrower(own["return"], answer):
            got = shown(own["return"])
            found.append(f"{self.spec.name}: expected to return {shown(answer)}, got {got}")
        return found


_SUSPENDED = (
    inspect.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
)


def marks_of(plugin: object) -> tuple[Mark, ...]:
    """Return the functions of a module or an instance marked by `hookimpl`, sorted by name."""
    names = [
        name
        for name in dir(plugin)
        if not isinstance(inspect.getattr_static(plugin, name, None), property)
    ]
    functions = [value for name in names if callable(value := getattr(plugin, name, None))]
    marked = [(getattr(function, _MARK, None), function) for function in functions]
    return tuple(Mark(mark[0], mark[1], function) for mark, function in marked if mark)


def _bare(signature: inspect.Signature) -> str:
    """Return the parameters as written, without their annotations."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))
