"""Helpers that build messages."""

import time

from tinygrad_peft.errors import (
    LISTED,
    LONGEST_LINE,
    LONGEST_MESSAGE,
    ConfigError,
    explained,
    failures,
    hinted,
    listed,
    nearest,
    shortened,
    told,
)
from tinygrad_peft.nn.module import mismatches


def test_the_nearest_names_are_suggested() -> None:
    assert nearest("q_porj", ["q_proj", "c_fc"], 1) == "; did you mean 'q_proj'?"
    assert nearest("zzz", ["q_proj", "c_fc"]) == ""


def test_the_nearest_of_many_names_is_found_by_its_parts() -> None:
    names = [f"layers.{i}.attn.{name}" for i in range(500) for name in ("q_proj", "v_proj")]
    assert nearest("layers.321.attn.v_porj", names, 1) == (
        "; did you mean 'layers.321.attn.v_proj'?"
    )


def test_very_long_names_get_no_suggestion() -> None:
    assert nearest("a" * 10**6, ["a" * 10**6, "a"]) == ""
    assert nearest("a", ["a" * 10**6]) == ""


def test_thousands_of_wrong_names_are_compared_in_a_moment() -> None:
    expected = {f"model.layers.{i}.self_attn.q_proj.lora_A.weight": (8, 8) for i in range(2000)}
    found = {name.replace("lora_A", "default.lora_A"): shape for name, shape in expected.items()}
    start = time.process_time()
    problems = mismatches(expected, found)
    assert time.process_time() - start < 5
    assert len(problems) == 4000
    assert problems[7].endswith(
        "; did you mean 'model.layers.7.self_attn.q_proj.default.lora_A.weight'?"
    )
    assert "did you mean" not in problems[LISTED]


def test_a_list_is_cut_short_and_so_are_its_lines() -> None:
    lines = listed(["a" * 1000] * (LISTED + 2)).splitlines()
    assert len(lines) == LISTED + 1
    assert lines[0] == f"  - {'a' * LONGEST_LINE}... and {1000 - LONGEST_LINE} characters more"
    assert lines[-1] == "  ... and 2 more"


def test_one_problem_stays_in_the_same_line() -> None:
    assert told(["one"]) == " one"
    assert told(["one", "two"]) == "\n  - one\n  - two"


def test_an_error_is_explained_with_its_notes() -> None:
    error = ConfigError("no such start")
    assert explained(error) == "no such start"
    error.add_note("(plugin 'lora')")
    assert explained(error) == "no such start\n(plugin 'lora')"


def test_a_short_text_is_not_cut() -> None:
    assert shortened("a" * LONGEST_LINE) == "a" * LONGEST_LINE


def test_failures_are_the_messages_whose_conditions_hold() -> None:
    assert failures({"too small": True, "too large": False, "empty": True}) == [
        "too small",
        "empty",
    ]
    assert failures({}) == []


def test_a_problem_of_several_lines_is_listed_with_the_others_indented() -> None:
    assert listed(["first\n  - detail", "second"]) == "  - first\n      - detail\n  - second"
    assert told(["first\nmore"]) == " first\nmore"
    assert told(["first\nmore", "second"]) == "\n  - first\n    more\n  - second"


def test_a_message_is_cut_short_however_it_was_put_together() -> None:
    error = ConfigError("names: " + ", ".join(f"name{n}" for n in range(10**6)))
    assert len(str(error)) < LONGEST_MESSAGE + 100
    assert str(error).startswith("names: name0, name1, ")
    assert str(error).endswith(" characters more")


def test_a_message_shows_control_characters_and_does_not_send_them() -> None:
    error = ConfigError("layer \x1b[31m\u202e\x00\ud800: é\nsecond line")
    assert str(error) == "layer \\x1b[31m\\u202e\\x00\\ud800: é\nsecond line"


def test_hints_for_a_hundred_thousand_names_take_a_moment() -> None:
    known = [f"layers.{i}.attn.q_proj" for i in range(10**5)]
    start = time.process_time()
    hints = [hint for _, hint in hinted((name + "_x" for name in known), known, 1)]
    assert time.process_time() - start < 10
    assert len(hints) == 10**5
    assert all(hints[:LISTED])
    assert not any(hints[LISTED:])
