"""Regular expressions in settings: what they mean, and how long they may take."""

import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.peft.small import LLAMA, small
from tinygrad_peft.errors import ConfigError, TinygradPeftError
from tinygrad_peft.peft import get_peft_model, inspect_path, matches
from tinygrad_peft.peft.configs.patterns import MOST, broken_expressions, full_match, named_by
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig

PATHS = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "base_model.model.encoder.layer.0.attention.self.query",
    "lm_head",
    "",
)
# As people and programs write them: PEFT, unsloth, ms-swift, and by hand.
USUAL = (
    r".*\.(q_proj|v_proj)",
    (
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|down_proj)))"
    ),
    r"^(?!.*visual).*(?:q_proj|down_proj)$",
    r"(.*\.)?(q_proj|query)",
    r"model\.layers\.(?:[0-9]|1[0-5])\..*_proj",
    r"(?i)MODEL\..*",
    r".*(?<!q)_proj",
    r"lm_head|.*\.self\.query",
    r"[\w.]*",
    r"(?P<a>model)\.layers\.\d+\.(?P<b>mlp|self_attn)\..+",
    r"",
)
# Each keeps Python's re busy for minutes or years on a path of 50 characters.
EXPLOSIVE = (
    r"(\w|\w\w|\.)+[!?]",
    r"(?:(?:\w|\d|_|[a-z]|\.)+)+[!?]",
    r"(.|..|...)*(.|..)*[!?]",
    r"(?:.|..)*(?<![a-z])",
    r"(.*?)(.*?)(.*?)(.*?)(.*?)(.*?)(.*?)\1\2\3\4\5\6\7[!?]",
)
# These too, and the engine sees at once that nothing matches.
REPEATED = (
    *(r"(a+)+$", r"(a|aa)+$", r"(.*)*x", r"(\w+\s?)*$!", r"(x+x+)+y", r"^(([\w.])+)+@"),
    *(r"(\w+\.?)+[!?]", r".*.*.*.*.*.*.*.*[!?]", r"(\w*\.*)*(\w*\.*)*[!?]", r"((\w|\.)*)*[!?]"),
)


@pytest.mark.parametrize("pattern", USUAL)
def test_an_expression_means_what_it_means_to_python(pattern: str) -> None:
    assert broken_expressions("a", [pattern]) == []
    for path in PATHS:
        assert matches(path, pattern) == (re.fullmatch(pattern, path) is not None)


@pytest.mark.parametrize("pattern", REPEATED)
def test_repeats_within_repeats_take_no_time_where_nothing_can_match(pattern: str) -> None:
    assert full_match(pattern, PATHS[2]) is None


@pytest.mark.parametrize("pattern", EXPLOSIVE)
def test_an_expression_that_takes_too_long_is_refused(pattern: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ConfigError, match=r"takes more than 0\.05 s to match 'base_model"):
        full_match(pattern, PATHS[2])
    assert time.perf_counter() - began < 30  # a loaded machine; re takes years


@pytest.mark.parametrize("pattern", [*EXPLOSIVE[:3], *REPEATED[:4]])
def test_no_expression_hangs_a_recipe(pattern: str) -> None:
    began = time.perf_counter()
    for config in (
        *({"target_modules": pattern}, {"target_modules": ["q_proj"], "exclude_modules": pattern}),
        *({"rank_pattern": {pattern: 2}}, {"alpha_pattern": {pattern: 2.0}}),
        {"layers_to_transform": 0, "layers_pattern": pattern},
    ):
        with suppress(TinygradPeftError):
            get_peft_model(small(LLAMA), LoraConfig(**config))
    assert time.perf_counter() - began < 30  # a loaded machine; re takes years


def test_expressions_in_a_file_are_limited_for_inspect_and_for_other_methods(
    tmp_path: Path,
) -> None:
    get_peft_model(small(LLAMA), LoraConfig()).save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    text = settings.read_text("utf-8")
    (tmp_path / "recipe.json").unlink()
    settings.write_text(text.replace('"rank_pattern": {}', r'"rank_pattern": {"(\\w|.)+[!?]": 2}'))
    for base in (None, LLAMA):
        [problem, *_] = inspect_path(tmp_path, base=base).problems
        assert "takes more than 0.05 s" in problem
    ia3 = IA3Config(target_modules=["q_proj"], feedforward_modules=EXPLOSIVE[1])
    with pytest.raises(ConfigError, match=r"takes more than 0\.05 s"):
        get_peft_model(small(LLAMA), replace(ia3, target_modules=".*q_proj"))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "missing ), unterminated subpattern at position 0"),
        (r"\m", r"bad escape \m at position 0"),
        ("(?:a){e<=1}", "expected '{' at position 5 to be escaped"),
        ("[[:alpha:]]", "expected '[' at position 0 to be escaped"),
        ("a" * 50_001, "expected at most 50,000 characters, got 50,001"),
    ],
)
def test_what_python_does_not_read_alike_is_invalid(pattern: str, told: str) -> None:
    [problem] = broken_expressions("target_modules", [pattern])
    assert problem.startswith("target_modules: invalid regular expression ")
    assert problem.endswith(told)


def test_a_part_of_an_expression_has_no_flags_for_the_whole() -> None:
    assert broken_expressions("target_modules", ["(?i)a"]) == []
    [problem] = broken_expressions("rank_pattern", ["(?i)a"], is_part=True)
    assert "global flags not at the start of the expression" in problem


def test_a_setting_has_a_limited_number_of_expressions() -> None:
    many = [f"a{n}" for n in range(MOST + 1)]
    assert broken_expressions("rank_pattern", many) == [
        "rank_pattern: expected at most 2,000 regular expressions, got 2,001"
    ]


def test_names_are_found_at_the_end_of_paths_in_time() -> None:
    paths = [f"model.layers.{n}.self_attn.q_proj" for n in range(20_000)]
    entries = ["q_proj", "layers.7.self_attn.q_proj", "model", *(f"x{n}" for n in range(20_000))]
    began = time.perf_counter()
    found = named_by(entries, paths)
    assert time.perf_counter() - began < 30  # a loaded machine; re takes years
    assert found["q_proj"] == paths
    assert found["layers.7.self_attn.q_proj"] == [paths[7]]
    assert found["model"] == []
