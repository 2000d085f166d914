"""The suite finds out what is wrong with a plugin, and no test of it is idle."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.testing import wrong_plugins
from tinygrad_peft.testing import MethodConformance

METHODS = {name: kind for name, kind in vars(wrong_plugins).items() if name.startswith("Test")}
PROMISES = {name for name in dir(MethodConformance) if name.startswith("test_")}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, list[str]]]:
    """What every test that failed said, by class and by test."""
    report = tmp_path_factory.mktemp("suite") / "report.xml"
    file = Path(wrong_plugins.__file__)
    options = ("-q", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        cwd=file.parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it just now
        method = case.attrib["classname"].rpartition(".")[2]
        test = case.attrib["name"].partition("[")[0]
        for failure in (*case.iter("failure"), *case.iter("error")):
            found[method][test].append(failure.attrib["message"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_suite_fails_where_the_plugin_breaks_a_promise_and_nowhere_else(
    name: str, failures: Mapping[str, Mapping[str, list[str]]]
) -> None:
    method = METHODS[name]
    messages = {test.removeprefix("test_"): texts for test, texts in failures[name].items()}
    expected = {*method.fails, *method.also}
    assert f"fails for no reason: {sorted(messages.keys() - expected)}" == "fails for no reason: []"
    assert f"finds nothing: {sorted(expected - messages.keys())}" == "finds nothing: []"
    for test, words in method.fails.items():
        assert all(words in message for message in messages[test]), messages[test]


def test_each_test_of_the_suite_is_failed_by_a_wrong_plugin() -> None:
    failed = {f"test_{test}" for method in METHODS.values() for test in method.fails}
    assert failed == PROMISES
