"""generate: completions of a prompt."""

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tests.cli.toys import (
    END,
    PAD,
    POSITIONS,
    Commands,
    word_tokenizer,
    write_model,
    write_tokenizer,
)
from tests.peft.small import LLAMA
from tinygrad_peft.models import Tokenizer as OwnTokenizer
from tinygrad_peft.models import load_model

PROMPT = "the film was"


def generate(model: Path, *more: str | Path) -> list[str | Path]:
    return ["generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", "8", *more]


@pytest.fixture
def adapter(small_world: Path, tmp_path: Path, commands: Commands) -> Path:
    """An adapter that has moved the model far enough to say something else."""
    commands.ok(
        *("finetune", "--model", small_world / "llama", "--task", "causal-lm", "--quiet"),
        *("--train", small_world / "definitions.jsonl", "--method", "lora:r=4"),
        *("--lr", "0.05", "--epochs", "5", "--batch-size", "8", "--out", tmp_path / "adapter"),
    )
    return tmp_path / "adapter"


def test_the_prompt_is_printed_with_what_follows(small_world: Path, commands: Commands) -> None:
    told = commands.ok(*generate(small_world / "llama", "--json")).json
    assert told["prompt"] == PROMPT
    assert told["new_tokens"] == 8
    ran = commands.ok(*generate(small_world / "llama"))
    assert ran.out == f"{PROMPT}{told['completion']}\n"
    assert ran.err == ""


def test_greedy_tokens_have_the_highest_logits(small_world: Path, commands: Commands) -> None:
    model = load_model(small_world / "gpt2")
    tokenizer = OwnTokenizer.from_directory(small_world / "gpt2")
    ids = tokenizer.encode(PROMPT)
    start = len(ids)
    for _ in range(8):
        ids.append(int(model(np.array([ids])).data[0, -1].argmax()))
    told = commands.ok(*generate(small_world / "gpt2", "--json")).json
    assert told["completion"] == tokenizer.decode(ids[start:])


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_generation_stops_at_each_end_token_of_the_settings(
    small_world: Path, tmp_path: Path, commands: Commands, file: str
) -> None:
    model = copytree(small_world / "gpt2", tmp_path / "model")
    prompt = np.array([OwnTokenizer.from_directory(model).encode(PROMPT)])
    said = load_model(model).generate(prompt, max_new_tokens=8)[0, prompt.shape[1] :].tolist()
    settings = json.loads((model / "config.json").read_bytes())
    ends = {"eos_token_id": [0, said[2], 100_000]}  # the last is not in the vocabulary
    (model / file).write_text(json.dumps(settings | ends), encoding="utf-8")
    told = commands.ok(*generate(model, "--json")).json
    assert told["new_tokens"] == said.index(said[2]) + 1


def test_adapter_changes_the_completion(
    small_world: Path, adapter: Path, commands: Commands
) -> None:
    model = small_world / "llama"
    base = commands.ok(*generate(model)).out
    adapted = commands.ok(*generate(model, "--adapter", adapter)).out
    assert adapted != base
    assert commands.ok(*generate(model, "--adapter", adapter)).out == adapted


def test_a_seed_draws_the_same_tokens_again(small_world: Path, commands: Commands) -> None:
    def drawn(seed: str) -> str:
        more = ("--temperature", "2", "--top-p", "0.9", "--seed", seed)
        return commands.ok(*generate(small_world / "llama", *more)).out

    assert drawn("1") == drawn("1") != drawn("2")


def word_pieces(*, closing: bool) -> Tokenizer:
    """Words with the space before them, as Llama's first tokenizer has them."""
    words = [PAD, END, "[UNK]", *(f"▁{word}" for word in PROMPT.split()), "▁long", "▁a"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[2]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([PAD, END])
    if closing:
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, 1)]
        )
    return backend


def test_the_space_between_prompt_and_completion_is_kept(
    tmp_path: Path, commands: Commands
) -> None:
    model = write_model(tmp_path, LLAMA, word_pieces(closing=False))
    told = commands.ok(*generate(model, "--json")).json
    assert str(told["completion"]).startswith(" ")


def test_a_tokenizer_that_closes_texts_does_not_close_the_prompt(
    tmp_path: Path, commands: Commands
) -> None:
    model = write_model(tmp_path, LLAMA, word_pieces(closing=True))
    room = POSITIONS - len(PROMPT.split())  # an end after the prompt would be one too many
    told = commands.ok(*generate(model, "--max-new-tokens", str(room), "--json")).json
    assert told["new_tokens"] == room


# ---------- what cannot be ----------


def test_an_empty_prompt_is_refused(small_world: Path, commands: Commands) -> None:
    arguments = ("generate", "--model", small_world / "llama", "--prompt", "")
    assert commands.fails(*arguments) == "tinygrad-peft: the prompt is empty\n"


def test_a_prompt_that_is_too_long_is_refused(small_world: Path, commands: Commands) -> None:
    model = ("--model", small_world / "llama")
    message = commands.fails("generate", *model, "--prompt", "a" * 45, "--max-new-tokens", "10")
    assert "a prompt of 45 tokens and 10 new ones are more than the model's 48 positions" in message


def test_all_invalid_settings_are_reported_at_once(small_world: Path, commands: Commands) -> None:
    more = ("--max-new-tokens", "0", "--temperature", "-1", "--top-p", "0")
    message = commands.fails(*generate(small_world / "llama", *more))
    assert message.splitlines() == [
        "tinygrad-peft: invalid Generation:",
        "  - max_new_tokens: expected at least 1, got 0",
        "  - temperature: expected a finite number of at least 0, got -1.0",
        "  - top_p: expected above 0 and at most 1, got 0.0",
    ]


@pytest.mark.parametrize(
    ("model", "kind"), [("bert", "a bare encoder"), ("classifier", "a sequence classifier")]
)
def test_only_a_language_model_generates(
    small_world: Path, commands: Commands, model: str, kind: str
) -> None:
    message = commands.fails(*generate(small_world / model))
    assert message == (
        f"tinygrad-peft: {small_world / model} is {kind}, "
        "and only a causal language model generates text\n"
    )


def test_a_tokenizer_larger_than_the_model_is_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    model = copytree(small_world / "llama", tmp_path / "model")
    write_tokenizer(model, word_tokenizer([*(f"word{i}" for i in range(300)), *PROMPT.split()]))
    message = commands.fails(*generate(model))
    assert "the tokenizer gives token 306, and the model has 280 tokens (0..279)" in message
