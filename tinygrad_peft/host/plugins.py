"""Plugins: their descriptions, their checks, and calls of their marked functions."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tinygrad_peft.errors import PluginError, TinygradPeftError, listed
from tinygrad_peft.host.hints import is_of, shown
from tinygrad_peft.host.marks import Mark, marks_of

__all__ = ["Answer", "Candidate", "PluginInfo", "asked", "examined"]

R = TypeVar("R")


@dataclass(frozen=True)
class PluginInfo:
    """A plugin.

    Attributes:
        name: its entry point's name, or the name that it was registered by.
        distribution: the installed distribution that declares it; "" if registered by hand.
        version: the distribution's version.
        error: why it cannot be used; "" if it can.
    """

    name: str
    distribution: str = ""
    version: str = ""
    error: str = ""

    @property
    def title(self) -> str:
        """The plugin with its distribution, as messages name it."""
        distribution = f"{self.distribution} {self.version}".strip()
        return f"plugin {self.name!r}" + (f" of {distribution}" if distribution else "")


@dataclass(frozen=True)
class Answer(Generic[R]):
    """A plugin's answer to a hook."""

    plugin: PluginInfo
    value: R


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plugin that fits the declared hooks: its marked functions, and the names it provides."""

    info: PluginInfo
    plugin: object
    marks: tuple[Mark, ...]
    names: frozenset[tuple[str, str]]  # each with its hook's name before it

    def clashes(self, other: "Candidate") -> list[str]:
        """Return the names that both plugins provide."""
        return [
            f"{hook}: {name!r} is provided by {other.info.title} too"
            for hook, name in sorted(self.names & other.names)
        ]


def examined(info: PluginInfo, plugin: object) -> Candidate:
    """Check a plugin, and return it with its marked functions.

    Raises PluginError for a class, for a plugin without marked functions, and with every function
    that does not fit its hook.
    """
    if isinstance(plugin, type):
        raise PluginError(f"{info.title}: expected a module or an instance, got a class")
    marks = marks_of(plugin)
    problems = [problem for mark in marks for problem in mark.problems()]
    if not marks:
        problems = ["expected a function marked by hookimpl, got none"]
    if problems:
        raise PluginError(f"{info.title} does not fit:\n{listed(problems)}")
    return Candidate(info, plugin, marks, _provided(info, marks))


def asked(mark: Mark, info: PluginInfo) -> Callable[..., Answer[object] | None]:
    """Wrap a marked function for a host: narrowed, with its errors and answers checked."""

    @functools.wraps(mark.function)
    def ask(*args: object) -> Answer[object] | None:
        arguments = dict(zip(mark.spec.signature.parameters, args, strict=True))
        if not mark.takes(arguments):
            return None
        where = f"{info.title}, hook {mark.spec.name}"
        try:
            value = mark.function(**arguments)
        except (TinygradPeftError, MemoryError) as error:
            error.add_note(f"({where})")
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"{where}: {type(error).__name__}: {error}") from error
        wanted = mark.spec.hints["return"]
        if not is_of(value, wanted):
            raise PluginError(f"{where}: expected {shown(wanted)}, got {value!r:.80}")
        if value is None:
            return None
        if mark.spec.check and (problem := mark.spec.check(value, **arguments)):
            raise PluginError(f"{where}: {problem}")
        return Answer(info, value)

    return ask


def _provided(info: PluginInfo, marks: Sequence[Mark]) -> frozenset[tuple[str, str]]:
    """Return the names that a plugin provides; raise PluginError for one provided twice."""
    found: list[tuple[str, str]] = []
    for mark in marks:
        if mark.spec.names is not None and (answer := asked(mark, info)()) is not None:
            found += [(mark.spec.name, name) for name in mark.spec.names(answer.value)]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        problems = [f"{hook}: {name!r} is provided twice" for hook, name in twice]
        raise PluginError(f"{info.title} does not fit:\n{listed(problems)}")
    return frozenset(found)
