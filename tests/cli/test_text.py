"""Text for people."""

from tinygrad_peft.cli.text import MISSING, columns, table
from tinygrad_peft.errors import printable


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


def test_missing_cells_align_with_numbers() -> None:
    assert columns([("", "loss"), ("a", MISSING), ("b", "12.5")]) == [
        "   loss",
        "a     –",
        "b  12.5",
    ]


def test_no_rows_give_no_lines() -> None:
    assert columns([]) == []


def test_control_characters_are_escaped() -> None:
    assert printable("é 😀\nnext") == "é 😀\nnext"
    assert printable("\x1b[31m\r\u202e") == "\\x1b[31m\\r\\u202e"


def test_without_a_terminal_a_table_is_columns() -> None:
    rows = [("", "loss"), ("[bold]a", "0.5")]
    assert table(rows) == columns(rows)
