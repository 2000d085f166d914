"""Tiny models with tokenizers and data sets, on disk as real ones are."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.peft.small import BERT, GPT2, LLAMA, small
from tinygrad_peft.cli.app import run
from tinygrad_peft.models import save_model
from tinygrad_peft.models.fetch import ARTIFACTS
from tinygrad_peft.nn import TransformerConfig

WORDS = ("a", "the", "film", "plot", "actor", "scene", "was", "good", "bad", "long", "short")
LABELS = ("neg", "pos")
PAD, END = "[PAD]", "<eos>"
POSITIONS = 48  # of each model


# ---------- running ----------


class Ran:
    """A command that has run: its status, and what it wrote."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> dict[str, object]:
        """The one JSON object that standard output is."""
        values = json.loads(self.out, parse_constant=_refuse)
        assert isinstance(values, dict)
        return values


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


class Commands:
    """Runs commands within the process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> Ran:
        self.capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        return Ran(status, *self.capsys.readouterr())

    def ok(self, *arguments: str | Path) -> Ran:
        """Run what has to succeed."""
        ran = self(*arguments)
        assert ran.status == 0, ran.err
        return ran

    def fails(self, *arguments: str | Path, status: int = 2) -> str:
        """Run what has to fail by a few plain lines, and return these."""
        ran = self(*arguments)
        assert (ran.status, ran.out) == (status, ""), ran.err
        assert "Traceback" not in ran.err
        assert 1 <= len(ran.err.splitlines()) <= 8, ran.err
        return ran.err


# ---------- models ----------


def write_model(folder: Path, config: TransformerConfig, backend: Tokenizer | None = None) -> Path:
    """A checkpoint with random weights, and its tokenizer."""
    usual = word_tokenizer if config.model_type == "bert" else byte_tokenizer
    backend = backend or usual()
    sized = replace(config, vocab_size=backend.get_vocab_size(), max_position_embeddings=POSITIONS)
    save_model(small(sized), folder)
    write_tokenizer(folder, backend)
    return folder


def write_tokenizer(folder: Path, backend: Tokenizer) -> None:
    backend.save(str(folder / "tokenizer.json"))
    names = {"pad_token": PAD, "eos_token": END}
    special = {name: text for name, text in names.items() if backend.token_to_id(text) is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")


def word_tokenizer(words: Sequence[str] = WORDS) -> Tokenizer:
    """Whole words between [CLS] and [SEP], as BERT has them."""
    special = (PAD, "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {word: place for place, word in enumerate((*special, *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(list(special))
    return backend


def byte_tokenizer() -> Tokenizer:
    """Byte-level pairs, as GPT-2 has them, with a token that ends a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        show_progress=False,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator([" ".join(WORDS)], trainer)
    return backend


CLASSIFIER = replace(BERT, head="classification", num_labels=2, label_names=LABELS)


def write_world(folder: Path) -> Path:
    """Models of each family, and data for both tasks."""
    for name, config in {
        "bert": BERT,
        "classifier": CLASSIFIER,
        "gpt2": GPT2,
        "llama": LLAMA,
    }.items():
        write_model(folder / name, config)
    write_jsonl(folder / "reviews.jsonl", reviews(48))
    write_jsonl(folder / "more-reviews.jsonl", reviews(16, seed=1))
    write_jsonl(folder / "definitions.jsonl", definitions(24))
    write_jsonl(folder / "more-definitions.jsonl", definitions(8, seed=1))
    return folder


# ---------- data ----------


def reviews(count: int, *, seed: int = 0) -> list[dict[str, object]]:
    """Texts that are positive where "good" is in them."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for place in range(count):
        words = [word for word in rng.choice(WORDS, rng.integers(3, 9)) if word != "good"]
        text = " ".join([*words, "good"] if place % 2 else [*words, "bad"])
        rows.append({"text": text, "label": LABELS[place % 2]})
    return rows


def definitions(count: int, *, seed: int = 0) -> list[dict[str, object]]:
    """Prompts with a completion that follows from them."""
    rng = np.random.default_rng(seed)
    nouns = rng.choice(WORDS[2:6], count)
    return [{"prompt": f"the {noun} was", "completion": f" long {noun}"} for noun in nouns]


def write_jsonl(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# ---------- the cache ----------


def fake_fetched(cache: Path, name: str) -> Path:
    """Write empty files of the right sizes, as the cache checks no more."""
    (artifact,) = (artifact for artifact in ARTIFACTS if artifact.name == name)
    for file in artifact.files:
        path = cache / name / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as holes:
            holes.truncate(file.size)
    return cache / name
