"""Commands that return a report."""

import json
import math
from collections.abc import Mapping

import click
import pytest

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command


def reporting(values: Mapping[str, object]) -> Report:
    return Report(values=values, lines=[])


def test_report_as_json_is_one_object() -> None:
    values = {"name": "é\n", "steps": 3, "loss": 0.1, "best": None, "methods": ["a", "b"]}
    assert json.loads(reporting(values).json()) == values


def test_numbers_that_json_does_not_have_are_null() -> None:
    report = reporting({"perplexity": math.inf, "losses": [math.nan, 0.5]})
    assert json.loads(report.json()) == {"perplexity": None, "losses": [None, 0.5]}


def test_floats_are_written_in_full() -> None:
    assert json.loads(reporting({"loss": 0.6026883125305176}).json())["loss"] == 0.6026883125305176


def test_report_as_text_is_its_lines() -> None:
    assert Report(values={}, lines=["one", "two"]).text() == "one\ntwo"


@command
@click.option("--name", default="x")
@options.quiet
def example(name: str, *, quiet: bool) -> Report:
    """Report its options."""
    return Report(values={"name": name, "quiet": quiet}, lines=[f"{name} {quiet}"], status=3)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "x False\n"),
        (["--name", "y", "--quiet"], "y True\n"),
        (["--json"], '{\n  "name": "x",\n  "quiet": true\n}\n'),
    ],
)
def test_command_prints_its_report_and_returns_the_status(
    capsys: pytest.CaptureFixture[str], arguments: list[str], printed: str
) -> None:
    assert example.main(arguments, standalone_mode=False) == 3
    assert capsys.readouterr().out == printed


def test_command_has_the_name_help_and_options_of_its_function(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example.main(["--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert example.name == "example"
    assert "Report its options." in shown
    places = [shown.index(option) for option in ("--name", "--quiet", "--json", "--help")]
    assert places == sorted(places)
