"""The typed host of all plugins: pluggy, without its silences.

pluggy types every call as Any, accepts hooks that no one declared, settles two answers by the order
of registration, and lets the first of two distributions with one entry-point name win. Here a call
is typed by the hook's declaration, and each of these is an error.
"""

import functools
import importlib.metadata
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypeVar, overload

import pluggy

from tinygrad_peft.errors import PluginError, listed, nearest
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.config import PeftConfig

__all__ = ["Host", "PluginInfo", "hookimpl"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., object])

GROUP = "tinygrad_peft"
ORDERING = ("tryfirst", "trylast", "wrapper", "hookwrapper")
_mark = pluggy.HookimplMarker(GROUP)


class _HookMarker(Protocol[P, R]):
    """Takes a function with the hook's parameters, or a method with `self` before them."""

    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, P], R], /
    ) -> Callable[Concatenate[S, P], R]: ...


def hookimpl(spec: Callable[P, R]) -> _HookMarker[P, R]:
    """Marks a function as a plugin's answer to the hook `spec`: mypy holds it to its signature."""

    def mark(function: F) -> F:
        return _mark(function, specname=spec.__name__)

    return mark


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin: its entry-point name, its distribution, and the methods it provides."""

    name: str
    distribution: str
    version: str
    methods: tuple[type[PeftConfig], ...]


class Host:
    """Plugins, and the calls to them. `Host()` is empty; `Host.installed()` has all there are."""

    _declarations: ClassVar[list[ModuleType]] = [hookspecs]  # modules that declare hooks

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._declared = 0  # how many of the declarations pluggy knows
        self._infos: dict[str, PluginInfo] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "Host":
        """Itself: plugins are modules, of which there is one each."""
        return self

    @classmethod
    def installed(cls) -> "Host":
        """A host with every plugin that an installed distribution declares.

        Raises PluginError where a name is claimed twice, where a plugin cannot be imported, and for
        all that `register` refuses.
        """
        host = cls()
        by_name: dict[str, list[importlib.metadata.EntryPoint]] = defaultdict(list)
        for point in importlib.metadata.entry_points(group=GROUP):
            by_name[point.name].append(point)
        _refuse_rivals(by_name)
        for name in sorted(by_name):
            (point, *_) = by_name[name]
            distribution, version = _distribution(point)
            try:
                plugin = point.load()
            except (Exception, SystemExit) as error:
                raise PluginError(
                    f"plugin {name!r} of {distribution} ({point.value}) "
                    f"cannot be imported: {type(error).__name__}: {error}"
                ) from error
            host._add(plugin, name, distribution, version)
        return host

    @classmethod
    def add_hookspecs(cls, module: ModuleType) -> None:
        """Declare the hooks that a module lists in `__all__`, for all hosts."""
        if module not in cls._declarations:
            cls._declarations.append(module)

    @classmethod
    def hookspecs(cls) -> dict[str, Callable[..., object]]:
        """Return the declarations of all hooks by name."""
        return {name: getattr(m, name) for m in cls._declarations for name in m.__all__}

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin: a module, or an instance, with functions marked by `hookimpl`.

        Raises PluginError, and does not add it, for a class, a name that is taken, a plugin without
        hooks, a hook that is not declared, takes other arguments or asks for a place before or
        around the others, and a method that another plugin provides.
        """
        self._add(plugin, name, "", "")

    def _add(self, plugin: object, name: str, distribution: str, version: str) -> None:
        if inspect.isclass(plugin):
            raise PluginError(f"plugin {name!r} is a class: register a module or an instance")
        if name in self._infos:
            raise PluginError(f"a plugin called {name!r} is registered already")
        if self._manager.get_name(plugin) is not None:
            known = self._manager.get_name(plugin)
            raise PluginError(f"plugin {name!r} is registered already, as {known!r}")
        marks = self._marks(plugin)
        problems = [problem for mark in marks for problem in mark.problems()]
        if not marks:
            problems = ["it has no function that is marked by hookimpl"]
        if problems:
            raise PluginError(f"plugin {name!r} does not fit:\n{listed(problems)}")
        info = PluginInfo(name, distribution, version, _provided(name, marks))
        self._refuse_clashes(info)
        self._manager.register(plugin, name)
        self._infos[name] = info

    def each(self, spec: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Every plugin's answer to a hook that is not None, the first registered first."""
        answers: list[R] = self._hook(spec)(**_by_name(spec, args, kwargs))
        return [] if answers is None else answers[::-1]

    def by_plugin(
        self, spec: Callable[P, R | None], *args: P.args, **kwargs: P.kwargs
    ) -> dict[str, R]:
        """Return the answers to a hook that are not None, by the plugins' names.

        Raises PluginError for a plugin that answers twice.
        """
        arguments = _by_name(spec, args, kwargs)
        answers: dict[str, R] = {}
        for impl in self._hook(spec).get_hookimpls():
            answer: Any = impl.function(*[arguments[name] for name in impl.argnames])
            if impl.plugin_name in answers and answer is not None:
                raise PluginError(f"{spec.__name__}: plugin {impl.plugin_name!r} answers twice")
            if answer is not None:
                answers[impl.plugin_name] = answer
        return answers

    def one(self, spec: Callable[P, R | None], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The one answer to a hook, or None.

        Raises PluginError, which names them, if several plugins answer.
        """
        answers = self.each(spec, *args, **kwargs)
        if len(answers) > 1:
            arguments = _by_name(spec, args, kwargs)
            names = [
                impl.plugin_name
                for impl in self._hook(spec).get_hookimpls()
                if impl.function(*[arguments[n] for n in impl.argnames]) is not None
            ]
            told = ", ".join(f"{k}={v!r:.80}" for k, v in arguments.items())
            raise PluginError(
                f"{spec.__name__}: only one plugin may answer, "
                f"and {' and '.join(sorted(names))} do, for {told}"
            )
        return answers[0] if answers else None

    def methods(self) -> Mapping[str, type[PeftConfig]]:
        """Every method by its name in lower case."""
        kinds = (kind for info in self._infos.values() for kind in info.methods)
        return dict(sorted((kind.peft_type.lower(), kind) for kind in kinds))

    def plugins(self) -> tuple[PluginInfo, ...]:
        """What is registered, by name."""
        return tuple(info for _, info in sorted(self._infos.items()))

    def _hook(self, spec: Callable[..., object]) -> pluggy.HookCaller:
        for module in self._declarations[self._declared :]:
            self._manager.add_hookspecs(module)
        self._declared = len(self._declarations)
        caller: pluggy.HookCaller = getattr(self._manager.hook, spec.__name__)
        return caller

    def _marks(self, plugin: object) -> list["_Mark"]:
        """The functions of a plugin that are marked as answers to hooks."""
        named = ((name, self._manager.parse_hookimpl_opts(plugin, name)) for name in dir(plugin))
        return [
            _Mark(options["specname"] or name, getattr(plugin, name), options)
            for name, options in named
            if options is not None
        ]

    def _refuse_clashes(self, new: PluginInfo) -> None:
        """Raise unless the plugin's methods have names of their own."""
        owners = {k.peft_type.lower(): i.name for i in self._infos.values() for k in i.methods}
        clashes = []
        for kind in new.methods:
            name = kind.peft_type.lower()
            if name in owners:
                clashes.append(f"{name!r} is provided by {owners[name]} and by {new.name}")
            owners[name] = new.name
        if clashes:
            raise PluginError(f"methods need names of their own:\n{listed(clashes)}")


@dataclass(frozen=True)
class _Mark:
    """A function that a plugin marked: the hook that it answers, and pluggy's options."""

    hook: str
    function: Callable[..., object]
    options: pluggy.HookimplOpts

    def problems(self) -> list[str]:
        """Why pluggy would ignore it, call it otherwise than its signature says, or move it."""
        declared = Host.hookspecs()
        if self.hook not in declared:
            return [f"unknown hook {self.hook!r}{nearest(self.hook, declared, 1)}"]
        found = [
            f"{self.hook} asks for {option}, and no plugin stands before or around the others"
            for option in ORDERING
            if self.options.get(option)
        ]
        # pluggy passes over an argument that has a default (until 1.6) or goes by name alone.
        wanted, own = (
            _plain_signature(declared[self.hook]),
            _plain_signature(self.function),
        )
        if own != wanted:
            found.append(f"{self.hook} takes {wanted} without defaults, and this takes {own}")
        return found


def _plain_signature(function: Callable[..., object]) -> str:
    """The parameters as they are written, without their annotations."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _provided(name: str, marks: Sequence[_Mark]) -> tuple[type[PeftConfig], ...]:
    """The methods that a plugin provides. Raises PluginError where they are none."""
    functions = [mark.function for mark in marks if mark.hook == hookspecs.peft_methods.__name__]
    kinds: list[type[PeftConfig]] = []
    for function in functions:
        try:
            answer = function()
        except Exception as error:
            raise PluginError(
                f"plugin {name!r}: peft_methods: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(answer, Sequence) or not all(map(_is_config_class, answer)):
            raise PluginError(
                f"plugin {name!r}: peft_methods gives a list of config classes, and not {answer!r}"
            )
        kinds += answer
    nameless = [k.__name__ for k in kinds if not re.fullmatch(r"\w+", getattr(k, "peft_type", ""))]
    if nameless:
        raise PluginError(
            f"plugin {name!r}: {', '.join(nameless)} needs a peft_type of letters, digits and _"
        )
    return tuple(kinds)


def _is_config_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, PeftConfig)


def _refuse_rivals(points: Mapping[str, Sequence[importlib.metadata.EntryPoint]]) -> None:
    rivals = []
    for name, claims in sorted(points.items()):
        claimants = sorted({f"{_distribution(p)[0]} ({p.value})" for p in claims})
        if len(claimants) > 1:
            rivals.append(f"{name!r}: {' and '.join(claimants)}")
    if rivals:
        raise PluginError(f"entry points that are claimed twice (uninstall one):\n{listed(rivals)}")


def _by_name(
    spec: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    return _signature(spec).bind(*args, **kwargs).arguments


_signature = functools.cache(inspect.signature)  # of the hooks' declarations, which never change


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """The name and version of the distribution that declares an entry point."""
    return (point.dist.name, point.dist.version) if point.dist else ("an unknown distribution", "")
