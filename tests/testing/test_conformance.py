"""The suite finds out what is wrong with a plugin, and no test of it is idle."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, TypeAlias

import pytest

from tests.testing import modest_plugins, wrong_plugins
from tests.testing.rank_one import Method
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.testing import MethodConformance

FILES = [Path(__file__).with_name(f"{name}_plugins.py") for name in ("modest", "wrong")]
METHODS: dict[str, type[Method]] = {
    name: kind
    for module in (modest_plugins, wrong_plugins)
    for name, kind in vars(module).items()
    if name.startswith("Test")
}
PROMISES = {name for name in dir(MethodConformance) if name.startswith("test_")}


Said: TypeAlias = Mapping[str, list[tuple[str, str]]]


def run_suite(folder: Path) -> list[ET.Element]:
    """Run pytest on all methods, and return its report of each test."""
    path = folder / "report.xml"
    options = ("-q", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={path}")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *FILES],
        cwd=FILES[0].parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr
    return list(ET.parse(path).iter("testcase"))  # noqa: S314 - pytest wrote it just now


def said(results: list[ET.Element], method: str, *kinds: str) -> Said:
    """For each test of a method that ended so: with which parameters, and what it said."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for case in results:
        test, _, parameters = case.attrib["name"].removeprefix("test_").partition("[")
        for result in case:
            if result.tag in kinds and case.attrib["classname"].endswith(f".{method}"):
                found[test].append((parameters.rstrip("]"), result.attrib["message"]))
    return found


def wrong_failures(method: type[Method], failures: Said) -> Iterator[str]:
    expected = {*method.fails, *method.also}
    yield from (f"{test} fails for no reason" for test in failures.keys() - expected)
    yield from (f"{test} finds nothing" for test in expected - failures.keys())
    for test, words in method.fails.items():
        strange = [message for _, message in failures[test] if words not in message]
        yield from (f"{test} does not say {words!r}: {message}" for message in strange)


def wrong_skips(method: type[Method], skips: Said) -> Iterator[str]:
    for test, words in method.skips:
        plain, _, wanted = test.rstrip("]").partition("[")
        reasons = [reason for parameters, reason in skips[plain] if parameters.startswith(wanted)]
        if not any(words in reason for reason in reasons):
            yield f"{test} is not skipped with {words!r}: {reasons}"


@pytest.mark.slow
def test_each_promise_that_is_broken_is_found_out_and_each_that_is_not_made_is_skipped(
    tmp_path: Path,
) -> None:
    results = run_suite(tmp_path)
    problems = [
        f"{name}: {problem}"
        for name, method in METHODS.items()
        for problem in (
            *wrong_failures(method, said(results, name, "failure", "error")),
            *wrong_skips(method, said(results, name, "skipped")),
        )
    ]
    assert problems == []
    # It composes with one of the three others that there are, and that one refuses.
    fewer = said(results, "TestComposesWithFewer", "skipped")["a_composition_is_counted"]
    assert [parameters for parameters, _ in fewer] == ["bert-shy-over", "bert-shy-under"]


def test_a_subclass_without_its_method_is_refused() -> None:
    class TestNothing(MethodConformance):
        pass

    with pytest.raises(ConfigError, match=r"^TestNothing needs the method: config = MyConfig"):
        TestNothing.pytest_generate_tests(None)  # type: ignore[arg-type]


def test_settings_that_would_drop_tests_are_refused_all_at_once() -> None:
    class TestMisspelt(Method):
        mergable = False
        trains = "no"  # type: ignore[assignment]
        configs: ClassVar = {"gtp2": Method.config}
        companions: ClassVar = {"rank_two": Method.config}
        composes_with = ("rankone",)

    class TestOneName(Method):
        composes_with = "rank_one"

    with pytest.raises(ConfigError) as error:
        TestMisspelt.check_settings()
    assert str(error.value).splitlines() == [
        "invalid settings of TestMisspelt:",
        "  - mergable: unknown setting, did you mean 'mergeable'?",
        "  - trains: expected True or False, got 'no'",
        "  - configs: unknown family 'gtp2'; did you mean 'gpt2'? (there are: gpt2, llama, bert)",
        (
            "  - companions: unknown installed method 'rank_two'; did you mean 'rank_one'? "
            "(there are: rank_one)"
        ),
        (
            "  - composes_with: unknown installed method 'rankone'; did you mean 'rank_one'? "
            "(there are: rank_one)"
        ),
    ]
    with pytest.raises(
        ConfigError, match=r"composes_with: expected several names, as \('rank_one'"
    ):
        TestOneName.check_settings()


def test_the_suite_says_what_it_needs() -> None:
    program = "import sys; sys.modules['pytest'] = None; import tinygrad_peft.testing"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "MissingExtraError: tinygrad_peft.testing needs pytest" in run.stderr
    assert "pip install 'tinygrad-peft[test]'" in run.stderr


def test_each_test_of_the_suite_is_failed_by_a_wrong_plugin() -> None:
    failed = {f"test_{test}" for method in METHODS.values() for test in method.fails}
    assert failed == PROMISES
