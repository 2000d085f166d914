"""The typed host of all plugins: pluggy, without its silences.

pluggy types every call as Any, accepts hooks that no one declared, settles two answers by the order
of registration, and lets the first of two distributions with one entry-point name win. Here a call
is typed by the hook's declaration, and each of these is an error.
"""

import importlib.metadata
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import pluggy

from tinygrad_peft.errors import PluginError, listed, nearest
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.config import PeftConfig

__all__ = ["Host", "PluginInfo", "hookimpl"]

P = ParamSpec("P")
R = TypeVar("R")

GROUP = "tinygrad_peft"
_mark = pluggy.HookimplMarker(GROUP)


def hookimpl(spec: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks a function as a plugin's answer to the hook `spec`: mypy holds it to its signature."""
    return lambda function: _mark(function, specname=spec.__name__)


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin: its entry-point name, its distribution, and the methods it provides."""

    name: str
    distribution: str
    version: str
    methods: tuple[type[PeftConfig], ...]


class Host:
    """Plugins, and the calls to them. `Host()` is empty; `Host.installed()` has all there are."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._distributions: dict[str, tuple[str, str]] = {}

    @classmethod
    def installed(cls) -> "Host":
        """A host with every plugin that an installed distribution declares.

        Raises PluginError where two distributions claim one name, where a plugin cannot be
        imported, and for all that `register` refuses.
        """
        host = cls()
        by_name: dict[str, list[importlib.metadata.EntryPoint]] = defaultdict(list)
        for point in importlib.metadata.entry_points(group=GROUP):
            by_name[point.name].append(point)
        host._refuse_rivals(by_name)
        for name in sorted(by_name):
            (point, *_) = by_name[name]
            try:
                plugin = point.load()
            except Exception as error:
                raise PluginError(
                    f"plugin {name!r} of {_distribution(point)[0]} ({point.value}) "
                    f"cannot be imported: {type(error).__name__}: {error}"
                ) from error
            host.register(plugin, name)
            host._distributions[name] = _distribution(point)
        return host

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin: a module, or an instance, with functions marked by `hookimpl`.

        Raises PluginError for a class, a name that is taken, a hook that is not declared or takes
        other arguments, and a method that another plugin provides; then it is not added.
        """
        if inspect.isclass(plugin):
            raise PluginError(f"plugin {name!r} is a class: register a module or an instance")
        if self._manager.has_plugin(name):
            raise PluginError(f"a plugin called {name!r} is registered already")
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            self.methods()
        except pluggy.PluginValidationError as error:
            self._manager.unregister(name=name)
            raise PluginError(f"plugin {name!r}: {error}{self._nearest_hook(plugin)}") from error
        except PluginError:
            self._manager.unregister(name=name)
            raise

    def each(self, spec: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Every plugin's answer to a hook that is not None, the first registered first."""
        answers: list[R] = self._hook(spec)(**_by_name(spec, args, kwargs))
        return [] if answers is None else answers[::-1]

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
        """Every method by its name in lower case.

        Raises PluginError if two plugins provide one name.
        """
        found: dict[str, tuple[str, type[PeftConfig]]] = {}
        clashes = []
        for info in self.plugins():
            for kind in info.methods:
                name = kind.peft_type.lower()
                if name in found:
                    clashes.append(f"{name!r} is provided by {found[name][0]} and by {info.name}")
                found[name] = (info.name, kind)
        if clashes:
            raise PluginError(f"methods need names of their own:\n{listed(clashes)}")
        return {name: kind for name, (_, kind) in sorted(found.items())}

    def plugins(self) -> tuple[PluginInfo, ...]:
        """What is registered, by name."""
        rows = []
        for impl in self._hook(hookspecs.peft_methods).get_hookimpls():
            distribution, version = self._distributions.get(impl.plugin_name, ("", ""))
            methods = tuple(cast("Sequence[type[PeftConfig]]", impl.function()))
            rows.append(PluginInfo(impl.plugin_name, distribution, version, methods))
        return tuple(sorted(rows, key=lambda info: info.name))

    def _hook(self, spec: Callable[..., object]) -> pluggy.HookCaller:
        caller: pluggy.HookCaller = getattr(self._manager.hook, spec.__name__)
        return caller

    def _refuse_rivals(self, points: Mapping[str, list[importlib.metadata.EntryPoint]]) -> None:
        rivals = [
            f"{name!r}: {' and '.join(sorted({_distribution(p)[0] for p in claims}))}"
            for name, claims in sorted(points.items())
            if len({_distribution(p)[0] for p in claims}) > 1
        ]
        if rivals:
            raise PluginError(
                f"entry points that several distributions claim (uninstall one):\n{listed(rivals)}"
            )

    def _nearest_hook(self, plugin: object) -> str:
        """The hook that a misspelt one may have meant."""
        marked = (getattr(plugin, name, None) for name in dir(plugin))
        given = [str(m.__name__) for m in marked if m and hasattr(m, f"{GROUP}_impl")]
        unknown = [name for name in given if name not in hookspecs.__all__]
        return "".join(nearest(name, hookspecs.__all__, 1) for name in unknown)


def _by_name(
    spec: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    return inspect.signature(spec).bind(*args, **kwargs).arguments


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """The name and version of the distribution that declares an entry point."""
    return (point.dist.name, point.dist.version) if point.dist else ("an unknown distribution", "")
