"""Tokenizers that multiply a text, or never end with it."""

import base64
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="needs the text extra")

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models import load_tokenizer
from tinygrad_peft.models.hf import tokenizer as tokenizer_module
from tinygrad_peft.models.hf.time_limit import within_seconds
from tinygrad_peft.models.hf.tokenizer_checks import (
    has_expressions,
    tokenizer_problems,
)


def replace(pattern: object, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: object) -> dict[str, object]:
    return {"type": "Sequence", "normalizers": list(steps)}


def table(*replacements: bytes) -> dict[str, object]:
    """An empty trie, and the texts behind it."""
    data = (1024).to_bytes(4, "little") + bytes(1024) + b"\0".join([*replacements, b""])
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def template(*pieces: Mapping[str, object], ids: int = 1) -> dict[str, object]:
    return {
        "type": "TemplateProcessing",
        "single": list(pieces),
        "pair": [SEQUENCE],
        "special_tokens": {"x": {"id": "x", "ids": [0] * ids, "tokens": ["x"] * ids}},
    }


SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
SPECIAL = {"SpecialToken": {"id": "x", "type_id": 0}}
DOUBLE = replace({"String": "a"}, "aa")


def folder_with(path: Path, **parts: object) -> Path:
    """Write a tokenizer of one word, with these parts."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    document = {"version": "1.0", "added_tokens": [], "model": model} | parts
    (path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "normalizer",
    [
        sequence(*[DOUBLE] * 40),
        sequence(*[{k: v for k, v in DOUBLE.items() if k != "type"}] * 40),
        sequence(*[{**DOUBLE, "type": "NFC"}] * 40),
        sequence(sequence(*[DOUBLE] * 20), sequence(*[DOUBLE] * 20)),
        sequence(*[replace({"String": ""}, "ab")] * 10),
        sequence(*[replace({"Regex": "x*"}, "ab")] * 10),
        replace({"String": "a"}, "b" * 3_000),
        sequence(*[{"type": "Prepend", "prepend": "a" * 1_000}] * 100),
        sequence(*[{"type": "Prepend", "prepend": "a"}, DOUBLE] * 15),
        sequence(*[{"type": "ByteLevel"}] * 20),
        sequence(*[{"type": "NFKD"}, replace({"String": "a"}, "\ufdfa")] * 4),
        table(b"a" * 3_000),
        sequence(*[{"type": "Unknown", "x": 1}] * 10),
    ],
)
def test_a_normaliser_that_multiplies_a_text_is_refused(
    tmp_path: Path, normalizer: dict[str, object]
) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is refused: normalizer: expected"):
        load_tokenizer(folder_with(tmp_path, normalizer=normalizer))


@pytest.mark.parametrize(
    ("section", "steps", "told"),
    [
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 9},
            "512 times and 0",
        ),
        ("post_processor", template(*[SEQUENCE] * 9), "9 times and 0"),
        (
            "post_processor",
            {"type": "Sequence", "processors": [template(SEQUENCE, SEQUENCE)] * 3},
            "8 times and 0",
        ),
        ("post_processor", template(SEQUENCE, SPECIAL, SPECIAL, ids=600), "1 times and 1,200"),
        ("post_processor", template({"Sequence": 3}), "Expected `object`, got `int`"),
        ("decoder", {"type": "Sequence", "decoders": [DOUBLE] * 9}, "512 times and 0"),
    ],
)
def test_the_other_steps_are_limited_too(section: str, steps: dict[str, object], told: str) -> None:
    [problem] = tokenizer_problems({section: steps})
    assert problem.startswith(f"{section}: ")
    assert told in problem


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"max_input_chars_per_word": 10**9}, "expected at most 1,000, got 1,000,000,000"),
        ({"continuing_subword_prefix": "#" * 200}, "expected at most 100 bytes, got 200"),
        ({"end_of_word_suffix": "#" * 200}, "expected at most 100 bytes, got 200"),
    ],
)
def test_a_model_that_makes_each_word_slow_is_refused(
    setting: dict[str, object], told: str
) -> None:
    [problem] = tokenizer_problems({"model": {"type": "WordPiece", **setting}})
    assert problem == f"{next(iter(setting))}: {told}"


# As real tokenizers have them; names of models that use them.
REAL: dict[str, dict[str, object]] = {
    "BERT": {"normalizer": {"type": "BertNormalizer", "lowercase": True}},
    "Llama 2": {
        "normalizer": sequence({"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")),
        "decoder": {"type": "Sequence", "decoders": [replace({"String": "▁"}, " ")]},
    },
    "ALBERT": {
        "normalizer": sequence(
            replace({"String": "``"}, '"'),
            replace({"String": "''"}, '"'),
            {"type": "NFKD"},
            {"type": "StripAccents"},
            {"type": "Lowercase"},
            table("صلى الله عليه وسلم".encode(), b"a"),
            replace({"Regex": " {2,}"}, " "),
        ),
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"},
    },
    "CLIP": {
        "normalizer": sequence(
            {"type": "NFC"}, replace({"Regex": r"\s+"}, " "), {"type": "Lowercase"}
        )
    },
    "a code model": {"normalizer": replace({"String": "\n"}, "<|newline|>")},
    "RoBERTa": {
        "pre_tokenizer": {"type": "ByteLevel"},
        "post_processor": {"type": "RobertaProcessing", "sep": ["a", 0], "cls": ["a", 0]},
    },
    "Llama 3": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+(?!\S)|\s+"}},
                {"type": "ByteLevel", "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [{"type": "ByteLevel"}, template(SPECIAL, SEQUENCE)],
        },
    },
}


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_keep_the_limits(name: str) -> None:
    assert tokenizer_problems(REAL[name]) == []
    assert has_expressions(REAL[name]) == (name in ("ALBERT", "CLIP", "Llama 3"))


# ---------- expressions ----------

# Some text of n letters takes a time of n³; what the package stops by itself takes 2ⁿ.
SLOW = {"Regex": "a*a*(?<!a|c)z?"}


def split(pattern: object) -> dict[str, object]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a+)+[bd]", r"((a+)+)+b", r"(?=(a+)+b)c"])
def test_an_expression_that_explodes_is_an_error(tmp_path: Path, pattern: str) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path, pre_tokenizer=split({"Regex": pattern})))
    with pytest.raises(CheckpointError, match=r"the tokenizer cannot be used: .*retry-limit"):
        tokenizer.encode("a" * 300 + "c")


def test_an_expression_that_takes_too_long_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "SECONDS", 0.1)
    tokenizer = load_tokenizer(folder_with(tmp_path, pre_tokenizer=split(SLOW)))
    with pytest.raises(CheckpointError, match=r"cannot be used: it takes more than 0\.\d s"):
        tokenizer.encode("a" * 1_000 + "c")
    with pytest.raises(CheckpointError, match=r"cannot be used: it takes more than 0\.\d s"):
        tokenizer.tokenize("a" * 1_000 + "c")


def test_an_expression_in_a_decoder_is_limited_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "SECONDS", 0.1)
    word = "a" * 1_000 + "c"
    model = {"type": "WordLevel", "vocab": {word: 0}, "unk_token": word}
    tokenizer = load_tokenizer(folder_with(tmp_path, model=model, decoder=replace(SLOW, "x")))
    with pytest.raises(CheckpointError, match=r"cannot be used: it takes more than 0\.\d s"):
        tokenizer.decode([0])


def test_work_within_its_time_returns_or_raises_what_it_would() -> None:
    assert within_seconds(60, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within_seconds(60, lambda: 1 // 0)


def test_work_beyond_its_time_goes_on_beside_the_others() -> None:
    ended = threading.Event()
    began = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"it takes more than 0\.1 s"):
        within_seconds(0.1, lambda: ended.wait(60))
    assert time.perf_counter() - began < 50
    ended.set()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_read_as_a_tokenizer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
