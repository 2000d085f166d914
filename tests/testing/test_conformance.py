"""The suite finds out what is wrong with a plugin, and no test of it is idle."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[ET.Element]:
    """What pytest says of each test of each method."""
    path = tmp_path_factory.mktemp("suite") / "report.xml"
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


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_suite_fails_where_the_plugin_breaks_a_promise_and_nowhere_else(
    name: str, results: list[ET.Element]
) -> None:
    method, failures = METHODS[name], said(results, name, "failure", "error")
    expected = {*method.fails, *method.also}
    assert f"fails for no reason: {sorted(failures.keys() - expected)}" == "fails for no reason: []"
    assert f"finds nothing: {sorted(expected - failures.keys())}" == "finds nothing: []"
    for test, words in method.fails.items():
        assert all(words in message for _, message in failures[test]), failures[test]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.skips])
def test_what_is_not_promised_is_skipped_with_its_name(
    name: str, results: list[ET.Element]
) -> None:
    skips = said(results, name, "skipped")
    for test, words in METHODS[name].skips:
        plain, _, wanted = test.rstrip("]").partition("[")
        reasons = [reason for parameters, reason in skips[plain] if parameters.startswith(wanted)]
        assert any(words in reason for reason in reasons), (test, reasons)


@pytest.mark.slow
def test_a_method_may_be_tested_beside_fewer_others(results: list[ET.Element]) -> None:
    skips = said(results, "TestComposesWithFewer", "skipped")
    beside = {parameters for parameters, _ in skips["composes_with_every_installed_method"]}
    assert beside == {"bert-shy-over", "bert-shy-under"}


def test_a_subclass_without_its_method_is_told_so() -> None:
    class TestNothing(MethodConformance):
        pass

    with pytest.raises(ConfigError, match=r"^TestNothing needs the method: config = MyConfig"):
        TestNothing.pytest_generate_tests(None)  # type: ignore[arg-type]


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
