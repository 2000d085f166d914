"""What commands print."""

import json
import math

import pytest

from tinygrad_peft.cli.output import MISSING, columns, emit, printable, table


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"name": "é\n", "steps": 3, "loss": 0.1, "best": None, "methods": ["a", "b"]}
    emit(values, ["not this"], as_json=True)
    assert json.loads(capsys.readouterr().out) == values


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"perplexity": math.inf, "losses": [math.nan, 0.5]}, [], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"perplexity": None, "losses": [None, 0.5]}


def test_floats_are_written_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"loss": 0.6026883125305176}, [], as_json=True)
    assert json.loads(capsys.readouterr().out)["loss"] == 0.6026883125305176


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"name": "not this"}, ["one", "two"], as_json=False)
    assert capsys.readouterr().out == "one\ntwo\n"


def test_columns_of_numbers_end_together() -> None:
    assert columns([("steps", "1,200"), ("loss", "-0.5"), ("a", "3 %")]) == [
        "steps  1,200",
        "loss    -0.5",
        "a        3 %",
    ]


def test_a_column_with_words_begins_together() -> None:
    assert columns([("steps", "12"), ("trained", "1 of 3 (33 %)"), ("in", "out")]) == [
        "steps    12",
        "trained  1 of 3 (33 %)",
        "in       out",
    ]


def test_a_header_stands_over_its_numbers() -> None:
    assert columns([("", "accuracy"), ("before", "79 %"), ("after", "8 %")]) == [
        "        accuracy",
        "before      79 %",
        "after        8 %",
    ]


def test_what_is_missing_stands_among_numbers() -> None:
    assert columns([("", "loss"), ("a", MISSING), ("b", "12.5")]) == [
        "   loss",
        "a     –",
        "b  12.5",
    ]


def test_no_rows_are_no_lines() -> None:
    assert columns([]) == []


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    assert printable("é 😀\nnext") == "é 😀\nnext"
    assert printable("\x1b[31m\r\u202e") == "\\x1b[31m\\r\\u202e"


def test_without_a_terminal_a_table_is_columns() -> None:
    rows = [("", "loss"), ("[bold]a", "0.5")]
    assert table(rows) == columns(rows)
