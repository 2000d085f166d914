"""A check of an installed plugin: what it declares, and the conformance suite on its methods."""

import dataclasses
import inspect
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tinygrad_peft.errors import ConfigError, MissingExtraError, PluginError, nearest
from tinygrad_peft.host import Host, PluginInfo
from tinygrad_peft.host.entry_points import declared, loaded
from tinygrad_peft.host.marks import Mark, marks_of
from tinygrad_peft.peft import RESERVED_SETTINGS, PeftConfig, hookspecs, parse_method
from tinygrad_peft.train import hookspecs as train_hookspecs

__all__ = ["MethodCheck", "Outcome", "PluginCheck", "check_plugin"]

HOOKS = frozenset((*hookspecs.__all__, *train_hookspecs.__all__))
TEST_FILE = """\
from tinygrad_peft.kit.trial import suite_of

TestMethod = suite_of({method!r})
"""


@dataclass(frozen=True)
class Outcome:
    """A promise on all families and in all recipes: how often it is kept, skipped and broken.

    Attributes:
        notes: the reasons of skips and failures, each once.
    """

    promise: str
    kept: int
    skipped: int
    broken: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MethodCheck:
    """A method: problems of its config class, and the outcome of each promise."""

    name: str
    problems: tuple[str, ...]
    remarks: tuple[str, ...]
    promises: tuple[Outcome, ...]

    @property
    def sound(self) -> bool:
        """True if there is no problem and no broken promise."""
        return not self.problems and not any(outcome.broken for outcome in self.promises)


@dataclass(frozen=True)
class PluginCheck:
    """A plugin: its own problems, and its methods."""

    plugin: PluginInfo
    problems: tuple[str, ...]
    methods: tuple[MethodCheck, ...]

    @property
    def sound(self) -> bool:
        """True if the plugin and all of its methods are sound."""
        return not self.problems and all(method.sound for method in self.methods)


def check_plugin(package: str, settings: Sequence[str] = ()) -> tuple[PluginCheck, ...]:
    """Check the plugins of an installed distribution, or the one of an entry point or module.

    `settings` are methods as on the command line, `NAME:key=value`, for methods that should not be
    tested with their defaults.

    Raises MissingExtraError without pytest, PluginError where no plugin has the name, or no method
    one of those in `settings`, and ConfigError for settings that a method does not have.
    """
    if find_spec("pytest") is None:
        raise MissingExtraError("check-plugin needs pytest: pip install 'tinygrad-peft[test]'")
    host = Host.installed()
    provided = {a.plugin.name: a.value for a in host.answers(hookspecs.peft_methods)}
    chosen = _chosen(package, host)
    given = {text.partition(":")[0].strip().lower(): text for text in settings}
    known = {k.peft_type.lower() for name in chosen for k in provided.get(name.name, ())}
    if unknown := sorted(given.keys() - known):
        raise PluginError(f"{package} does not provide {', '.join(map(repr, unknown))}")
    for text in settings:
        parse_method(text, host)
    return tuple(_checked(info, provided.get(info.name, ()), given) for info in chosen)


def _chosen(package: str, host: Host) -> list[PluginInfo]:
    """Return the plugins that a name stands for."""
    names = {
        info.name: {info.name, info.distribution, points[0].module.partition(".")[0]}
        for info, points in declared().items()
    }
    found = [info for info in host.plugins() if package in names[info.name]]
    if not found:
        everything = sorted(set().union(*names.values()))
        raise PluginError(f"no plugin is called {package!r}{nearest(package, everything)}")
    return found


def _checked(
    info: PluginInfo, kinds: Sequence[type[PeftConfig]], given: Mapping[str, str]
) -> PluginCheck:
    problems = [info.error] if info.error else []
    marks: tuple[Mark, ...] = ()
    try:
        points = next(p for known, p in declared().items() if known.name == info.name)
        plugin = loaded(info, points)
    except PluginError:  # the host has its error
        pass
    else:
        marks = marks_of(plugin)
        problems += _unmarked(plugin, marks)
    methods = (_method(kind, marks, given.get(kind.peft_type.lower())) for kind in kinds)
    return PluginCheck(info, tuple(problems), tuple(methods))


def _unmarked(plugin: object, marks: Sequence[Mark]) -> list[str]:
    marked = [mark.function for mark in marks]
    return [
        f"{name}: a hook's name, and not marked: @hookimpl(hookspecs.{name})"
        for name, value in vars(plugin).items()
        if name in HOOKS and inspect.isfunction(value) and value not in marked
    ]


def _method(kind: type[PeftConfig], marks: Sequence[Mark], given: str | None) -> MethodCheck:
    name = kind.peft_type.lower()
    clashes = sorted(RESERVED_SETTINGS & {field.name for field in dataclasses.fields(kind)})
    problems = [
        f"setting {clash}: a name that PEFT's files have for themselves" for clash in clashes
    ]
    if not _answers(marks, "count_parameters", kind):
        problems.append("no count_parameters: `count` cannot tell its parameters")
    mergeable = any(mark.spec.name == "merge_module" for mark in marks)
    remarks = (
        [] if mergeable else [f"no merge_module: {kind.not_mergeable or 'it cannot be merged'}"]
    )
    try:
        if given is None:
            kind()
    except (ConfigError, TypeError) as error:
        problems.append(f"its defaults make no config, give --method {name}:...: {error}")
        return MethodCheck(name, tuple(problems), tuple(remarks), ())
    return MethodCheck(name, tuple(problems), tuple(remarks), run_suite(given or name))


def _answers(marks: Sequence[Mark], hook: str, kind: type[PeftConfig]) -> bool:
    kinds = [mark.kind for mark in marks if mark.spec.name == hook]
    return any(k is None or (isinstance(k, type) and issubclass(kind, k)) for k in kinds)


def run_suite(method: str) -> tuple[Outcome, ...]:
    """Run the conformance suite in a process of its own, and count the outcomes per promise.

    Raises PluginError where pytest cannot run it.
    """
    with tempfile.TemporaryDirectory() as folder:
        test, report = Path(folder, "test_method.py"), Path(folder, "report.xml")
        test.write_text(TEST_FILE.format(method=method), "utf-8")
        Path(folder, "pytest.ini").write_text("[pytest]\n", "utf-8")
        options = ("-q", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}", str(test))
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )
        if run.returncode not in (0, 1):
            raise PluginError(f"the suite cannot run on {method}:\n{run.stdout}{run.stderr}")
        return tuple(_outcomes(ET.parse(report).iter("testcase")))  # noqa: S314 - pytest wrote it


def _outcomes(cases: Iterator[ET.Element]) -> Iterator[Outcome]:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for case in cases:
        name = case.attrib["name"].partition("[")[0].removeprefix("test_")
        results = [r for r in case if r.tag in ("failure", "error", "skipped")]
        kind, note = (results[0].tag, results[0].get("message", "")) if results else ("", "")
        found[name].append((kind, note))
    for name, results_of in found.items():
        kinds = [kind for kind, _ in results_of]
        notes = dict.fromkeys(note for _, note in results_of if note)
        kept, skipped = kinds.count(""), kinds.count("skipped")
        yield Outcome(name, kept, skipped, len(kinds) - kept - skipped, tuple(notes))
