"""The typed host of all plugins: pluggy, without its silences.

pluggy types every call as Any, accepts hooks that no one declared, settles two answers by the order
of registration, lets the first of two distributions with one entry-point name win, and does not say
whose function failed. Here a call is typed by the hook's declaration, and each of these is an error
that names the plugin.
"""

import dataclasses
from collections.abc import Callable, Iterable
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import ParamSpec, TypeVar

import pluggy

from tinygrad_peft.errors import PluginError, listed
from tinygrad_peft.host.entry_points import SWITCHED_OFF, declared, loaded, names_to_leave_out
from tinygrad_peft.host.marks import GROUP, Spec, spec_of
from tinygrad_peft.host.plugins import Answer, Candidate, PluginInfo, asked, examined

__all__ = ["Host"]

P = ParamSpec("P")
R = TypeVar("R")

_declares = pluggy.HookspecMarker(GROUP)
_answers = pluggy.HookimplMarker(GROUP)


class Host:
    """Plugins, and calls of their hooks. `Host()` is empty; `Host.installed()` has all plugins."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._specs: dict[str, Spec] = {}
        self._declaring = Lock()
        self._candidates: dict[str, Candidate] = {}
        self._broken: dict[str, PluginInfo] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "Host":
        """Return the host itself: copies of a model share its plugins."""
        return self

    @classmethod
    def installed(cls, without: Iterable[str] = ()) -> "Host":
        """Return a host with every plugin that an installed distribution declares.

        A plugin that cannot be used does not affect the others: `plugins()` lists it with its
        error. If two distributions claim one name, or two plugins provide one method, neither is
        used. `without` names plugins to leave out, in addition to the comma-separated names in the
        environment variable TINYGRAD_PEFT_WITHOUT.

        Raises PluginError for a name in `without` that no installed plugin has.
        """
        host, found = cls(), declared()
        off = names_to_leave_out(without, [info.name for info in found])
        candidates = []
        for info, points in found.items():
            if info.name in off:
                host._broken[info.name] = dataclasses.replace(info, error=SWITCHED_OFF)
                continue
            try:
                candidates.append(examined(info, loaded(info, points)))
            except PluginError as error:
                host._broken[info.name] = dataclasses.replace(info, error=str(error))
        for candidate in candidates:
            try:
                host._add(candidate, candidates)
            except PluginError as error:
                host._broken[candidate.info.name] = dataclasses.replace(
                    candidate.info, error=str(error)
                )
        return host

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin: a module, or an instance, with functions marked by `hookimpl`.

        Raises PluginError, and does not add it, for a class, a name that is taken, a plugin without
        hooks, functions that do not fit their hooks, and a method that another plugin provides.
        """
        if name in self._candidates:
            raise PluginError(f"plugin {name!r} is already registered")
        self._add(examined(PluginInfo(name), plugin), self._candidates.values())

    def answers(
        self, spec: Callable[P, R | None], *args: P.args, **kwargs: P.kwargs
    ) -> list[Answer[R]]:
        """Return every answer to a hook except None, with its plugin, in order of registration."""
        hook = spec_of(spec)
        arguments = hook.signature.bind(*args, **kwargs).arguments
        answers: list[Answer[R]] = self._caller(hook)(**arguments)
        return answers[::-1]

    def each(self, spec: Callable[P, R | None], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Return every answer to a hook except None, in order of registration."""
        return [answer.value for answer in self.answers(spec, *args, **kwargs)]

    def one(self, spec: Callable[P, R | None], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Return the one answer to a hook, or None.

        Raises PluginError, with their names, if several plugins answer.
        """
        answers = self.answers(spec, *args, **kwargs)
        if len(answers) > 1:
            names = sorted(answer.plugin.name for answer in answers)
            arguments = spec_of(spec).signature.bind(*args, **kwargs).arguments
            given = ", ".join(f"{k}={v!r:.80}" for k, v in arguments.items())
            raise PluginError(
                f"{spec_of(spec).name}: expected one answer, got {len(names)}, "
                f"from {' and '.join(names)}, for {given}"
            )
        return answers[0].value if answers else None

    def has_hook(self, plugin: str, spec: Callable[..., object]) -> bool:
        """Tell whether the plugin of that name answers a hook."""
        candidate = self._candidates.get(plugin)
        wanted = spec_of(spec)
        return candidate is not None and any(mark.spec is wanted for mark in candidate.marks)

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Return all plugins in order of their names, including those with an `error`."""
        usable = {name: candidate.info for name, candidate in self._candidates.items()}
        return tuple(info for _, info in sorted((self._broken | usable).items()))

    def _add(self, candidate: Candidate, others: Iterable[Candidate]) -> None:
        info = candidate.info
        for known in self._candidates.values():
            if known.plugin is candidate.plugin:
                raise PluginError(f"{info.title} is already registered, as {known.info.name!r}")
        clashes = [
            problem
            for other in others
            if other is not candidate
            for problem in candidate.clashes(other)
        ]
        if clashes:
            raise PluginError(f"{info.title} provides names that are taken:\n{listed(clashes)}")
        for mark in candidate.marks:
            self._caller(mark.spec)
        functions = {
            f"{mark.spec.name}_{number}": _answers(asked(mark, info), specname=mark.spec.name)
            for number, mark in enumerate(candidate.marks)
        }
        self._manager.register(SimpleNamespace(**functions), info.name)
        self._candidates[info.name] = candidate

    def _caller(self, spec: Spec) -> pluggy.HookCaller:
        """Return pluggy's caller of a hook, declared to pluggy on first use."""
        if spec.name not in self._specs:
            self._declare(spec)
        known = self._specs[spec.name]
        if known is not spec:
            modules = " and ".join(s.function.__module__ for s in (known, spec))
            raise PluginError(f"hook {spec.name}: expected one declaration, got {modules}")
        caller: pluggy.HookCaller = getattr(self._manager.hook, spec.name)
        return caller

    def _declare(self, spec: Spec) -> None:
        with self._declaring:
            if spec.name in self._specs:
                return  # another thread was first
            namespace = ModuleType(spec.name)
            setattr(namespace, spec.name, _declares(spec.function))
            self._manager.add_hookspecs(namespace)
            self._specs[spec.name] = spec
