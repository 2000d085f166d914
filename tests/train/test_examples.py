"""Reading examples and encoding them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tinygrad_peft.errors import DataError
from tinygrad_peft.train.examples import (
    ClassificationExample,
    CompletionExample,
    TextExample,
    label_names,
    read_examples,
    task_of_file,
)

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def message(path: Path, task: str = "sequence-classification") -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path, task)  # type: ignore[call-overload]
    return str(caught.value)


# ---------- reading ----------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json-lines", "A.JSONL"])
def test_classification_is_read_from_json_lines(write: Write, name: str) -> None:
    path = write(name, '{"text": "good", "label": "pos"}\n\n{"text": "bad", "label": "neg"}')
    assert read_examples(path, "sequence-classification") == [
        ClassificationExample("good", "pos"),
        ClassificationExample("bad", "neg"),
    ]


def test_classification_is_read_from_csv_with_quotes_and_line_breaks(write: Write) -> None:
    path = write("a.csv", 'id,label,text\r\n1,pos,"good,\n""very"" good"\r\n\r\n2,neg,bad\r\n')
    assert read_examples(path, "sequence-classification") == [
        ClassificationExample('good,\n"very" good', "pos"),
        ClassificationExample("bad", "neg"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "task"),
    [
        ("a.jsonl", '{"text": "good", "label": 1}\n', "sequence-classification"),
        ("a.csv", "text,label\ngood,pos\n", "sequence-classification"),
        ("a.jsonl", 'not JSON\n{"text": "good", "label": 1}\n', "sequence-classification"),
        ("a.jsonl", '{"text": "once"}\n{"text": "x", "label": 1}\n', "causal-lm"),
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n', "causal-lm"),
        ("a.jsonl", "", "causal-lm"),
    ],
)
def test_the_first_row_decides_the_task_of_a_file(
    write: Write, name: str, content: str, task: str
) -> None:
    assert task_of_file(write(name, content)) == task


def test_causal_examples_are_texts_or_prompts_with_completions(write: Write) -> None:
    texts = write("a.jsonl", '{"text": "once", "source": null}\n')
    pairs = write("b.csv", "prompt,completion\nA:, b\n")
    assert read_examples(texts, "causal-lm") == [TextExample("once")]
    assert read_examples(pairs, "causal-lm") == [CompletionExample("A:", " b")]


def test_fields_that_are_not_read_are_named_once(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("a.jsonl", '{"text": "x", "input": "y"}\n{"text": "x", "input": "", "id": 1}\n')
    read_examples(path, "causal-lm")
    assert caplog.messages == [f"{path}: fields that are not read: 'input', 'id'"]
    caplog.clear()
    read_examples(write("a.csv", ",Unnamed: 0,text\n0,0,once\n"), "causal-lm")
    assert caplog.messages == []


def test_a_prompt_may_be_empty_and_a_completion_may_not(write: Write) -> None:
    path = write("a.csv", "prompt,completion\n,once\n")
    assert read_examples(path, "causal-lm") == [CompletionExample("", "once")]
    path = write("a.jsonl", '{"prompt": "once", "completion": ""}\n')
    assert "line 1: 'completion' is empty" in message(path, "causal-lm")


def test_labels_in_json_become_text_as_json_spells_them(write: Write) -> None:
    rows = [{"text": "x", "label": label} for label in (3, True, False, "a", 2.0)]
    path = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    labels = [example.label for example in read_examples(path, "sequence-classification")]
    assert labels == ["3", "true", "false", "a", "2"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_not_part_of_the_text(write: Write, name: str) -> None:
    content = {"a.jsonl": '{"text": "x"}', "a.csv": "text\nx\n"}[name]
    assert read_examples(write(name, b"\xef\xbb\xbf" + content.encode()), "causal-lm") == [
        TextExample("x")
    ]


def test_unicode_line_separators_inside_a_string_do_not_end_the_line(write: Write) -> None:
    path = write("a.jsonl", '{"text": "a\u2028b\x85c"}\r\n')
    assert read_examples(path, "causal-lm") == [TextExample("a\u2028b\x85c")]


def test_all_bad_lines_are_listed_at_once(write: Write) -> None:
    path = write(
        "a.jsonl",
        '{"text": "fine", "label": "a"}\n'
        "{\n"
        '{"text": "x", "lable": "a"}\n'
        '{"text": 7, "label": "a"}\n'
        '{"text": "x", "label": 0.5}\n'
        '{"text": " ", "label": "a"}\n'
        '{"text": "x", "text": "y", "label": "a"}\n'
        "[1]\n"
        "{}\n"
        '{"text": "x", "label": null}\n'
        '{"text": "x", "label": ""}\n',
    )
    assert message(path).splitlines() == [
        f"{path} cannot be used for sequence-classification: 10 bad lines",
        "  line 2: not a JSON object: Input data was truncated",
        "  line 3: expected 'text' and 'label', got 'text', 'lable'",
        "  line 4: Expected `str`, got `int` - at `$.text`",
        "  line 5: Expected `bool | int | str`, got `float` - at `$.label`",
        "  line 6: 'text' is empty",
        "  line 7: given more than once: 'text'",
        "  line 8: not a JSON object: Expected `object`, got `array`",
        "  line 9: expected 'text' and 'label', got no fields",
        "  line 10: Expected `bool | int | str`, got `null` - at `$.label`",
        "  line 11: 'label' is empty",
    ]


def test_lines_with_the_same_problem_share_one_message(write: Write) -> None:
    path = write("a.csv", "text,lable\n" + "x,y\n" * 50)
    assert message(path).splitlines() == [
        f"{path} cannot be used for sequence-classification: 50 bad lines",
        "  lines 2, 3, 4 and 47 more: expected 'text' and 'label', got 'text', 'lable'",
    ]


def test_only_the_first_ten_problems_are_shown(write: Write) -> None:
    rows = "\n".join(f'{{"field{number}": 1}}' for number in range(14))
    lines = message(write("a.jsonl", rows), "causal-lm").splitlines()
    assert len(lines) == 12
    assert lines[0].endswith("14 bad lines")
    assert lines[-1] == "  and 4 more kinds of problem"


def test_texts_and_completions_do_not_mix_in_one_file(write: Write) -> None:
    path = write("a.jsonl", '{"text": "x"}\n{"prompt": "x", "completion": "y"}\n')
    assert "line 2: expected 'text' as in line 1, got 'prompt' and 'completion'" in message(
        path, "causal-lm"
    )


def test_a_row_that_is_both_a_text_and_a_completion_is_refused(write: Write) -> None:
    path = write("a.jsonl", '{"text": "x", "prompt": "x", "completion": "y"}\n')
    assert "expected 'text', or 'prompt' and 'completion', got 'text', 'prompt'" in message(
        path, "causal-lm"
    )


@pytest.mark.parametrize("distinct", [30_000, 50_000])
def test_thousands_of_fields_give_a_short_message(write: Write, distinct: int) -> None:
    header = ",".join(f"field{place % distinct}" for place in range(50_000))
    shown = message(write("a.csv", f"{header}\n{'x,' * 50_000}\n"))
    assert ("given more than once" in shown) is (distinct < 50_000)
    assert len(shown) < 2_000


def test_csv_rows_are_as_wide_as_the_header(write: Write) -> None:
    path = write("a.csv", "text,label\nx,y,z\nx\n")
    shown = message(path)
    assert "line 2: expected 2 columns as in the header, got 3" in shown
    assert "line 3: expected 2 columns as in the header, got 1" in shown


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("text,text\nx,y\n", "line 1: not CSV: given more than once: 'text'"),
        ('text\n"never closed\n', "not CSV: unexpected end of data"),
        ('text\n"x"y\n', "line 2: not CSV: ',' expected after '\"'"),
    ],
)
def test_broken_csv_is_refused_with_its_line(write: Write, content: str, told: str) -> None:
    assert told in message(write("a.csv", content), "causal-lm")


def test_deep_nesting_and_lone_surrogates_are_bad_lines(write: Write) -> None:
    deep = '{"text": "x", "more": ' + "[" * 100_000 + "}"
    shown = message(write("a.jsonl", deep + '\n{"text": "\\ud800"}\n'), "causal-lm")
    assert "line 1: not a JSON object: nested too deeply" in shown
    assert "line 2: not a JSON object" in shown


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_an_error(write: Write, content: str) -> None:
    path = write("a.jsonl", content)
    assert message(path) == f"{path} holds no examples: expected at least one"
    assert "holds no examples" in message(write("a.csv", content))
    assert "holds no examples" in message(write("b.csv", "text,label\n"))


def test_bytes_that_are_not_utf8_are_refused_with_their_line(write: Write) -> None:
    path = write("a.jsonl", b'\xef\xbb\xbf{"text": "x"}\n{"text": "caf\xe9"}\n')
    assert message(path) == f"{path} is not UTF-8: line 2, column 14 holds the byte 0xe9"


def test_a_spreadsheet_in_utf16_is_refused_by_name(write: Write) -> None:
    path = write("a.csv", "text,label\nx,y\n".encode("utf-16"))
    assert message(path) == f"{path} is UTF-16: save it as UTF-8"


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert message(path) == f"cannot read {path}: No such file or directory"


def test_an_unknown_extension_is_an_error(write: Write) -> None:
    path = write("a.txt", "x")
    assert message(path) == (
        f"cannot tell the format of {path}: expected an extension of .jsonl, .json-lines, .csv, "
        ".tsv, got .txt"
    )


# ---------- labels ----------


def test_label_names_are_sorted_by_number_where_all_are_numbers() -> None:
    def names(*labels: str) -> tuple[str, ...]:
        return label_names([ClassificationExample("x", label) for label in labels])

    assert names("10", "9", "-1", "9") == ("-1", "9", "10")
    assert names("10", "9", "b") == ("10", "9", "b")
