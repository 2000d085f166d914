"""Texts in lower case, where sentence_bert_config.json asks for them."""

import json
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="needs the text extra")

from tinygrad_peft.models import load_tokenizer  # noqa: E402


@pytest.mark.parametrize("normalizer", [None, "one", "several"])
def test_do_lower_case_comes_before_the_normaliser_and_is_saved(
    tmp_path: Path, normalizer: str | None
) -> None:
    vocabulary = {"[UNK]": 0, "good": 1, "film": 2}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token=next(iter(vocabulary)))
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    strip = tokenizers.normalizers.Strip()
    if normalizer is not None:
        several = tokenizers.normalizers.Sequence([strip, tokenizers.normalizers.NFC()])
        backend.normalizer = strip if normalizer == "one" else several
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("Good FILM") == [0, 0]
    settings = {"max_seq_length": 8, "do_lower_case": True}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.lower_cases
    assert tokenizer.encode("Good FILM") == [1, 2]
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("Good FILM") == [1, 2]
