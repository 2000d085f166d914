"""finetune: what it trains, writes and says."""

import json
import os
from pathlib import Path
from shutil import copytree

import pytest

from tests.cli.toys import (
    LABELS,
    WORDS,
    Commands,
    reviews,
    word_tokenizer,
    write_jsonl,
    write_tokenizer,
)

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "recipe.json",
    "metrics.json",
    "log.jsonl",
}


def classify(world: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """The arguments that fine-tune the encoder on the reviews."""
    return [
        *("finetune", "--model", world / "bert", "--task", "sequence-classification"),
        *("--train", world / "reviews.jsonl", "--method", "lora:r=4", "--batch-size", "8"),
        *("--lr", "0.003", "--out", out, *more),
    ]


def complete(world: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """The arguments that fine-tune a language model on the definitions."""
    return [
        *("finetune", "--model", world / "llama", "--task", "causal-lm", "--out", out),
        *("--train", world / "definitions.jsonl", "--method", "lora:r=4", "--batch-size", "8"),
        *("--lr", "0.01", *more),
    ]


def tree(folder: Path) -> set[str]:
    """All files below a folder, hidden ones too."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def events(out: Path) -> list[dict[str, object]]:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# ---------- what it trains ----------


def test_a_classifier_learns_and_leaves_its_files(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "out"
    evaluation = small_world / "more-reviews.jsonl"
    ran = commands.ok(*classify(small_world, out, "--eval", evaluation, "--epochs", "8", "--json"))
    assert ran.err == ""
    assert tree(out) == FILES
    told = ran.json
    assert (told["outcome"], told["steps"], told["out"]) == ("finished", 48, str(out))
    assert told["eval_accuracy"] == 15 / 16
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert metrics["best"]["accuracy"] == told["eval_accuracy"]
    assert metrics["job"]["labels"] == list(LABELS)
    assert [e["event"] for e in events(out)].count("step_ended") == 48


def test_a_language_model_learns(small_world: Path, tmp_path: Path, commands: Commands) -> None:
    out = tmp_path / "out"
    evaluation = small_world / "more-definitions.jsonl"
    more = ("--eval", evaluation, "--epochs", "10", "--eval-every", "3", "--json")
    told = commands.ok(*complete(small_world, out, *more)).json
    evaluated = [e for e in events(out) if e["event"] == "evaluated"]
    assert [e["step"] for e in evaluated] == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    losses = [e["loss"] for e in evaluated]
    assert isinstance(losses[0], float)
    assert told["eval_loss"] == min(map(float, map(str, losses))) < losses[0] - 0.2
    assert told["eval_accuracy"] is None


# ---------- what is wrong is told before anything is written ----------


def test_texts_longer_than_the_models_positions_are_told_before_training(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    rows: list[dict[str, object]] = [*reviews(4), {"text": "good " * 200, "label": "pos"}]
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    message = commands.fails(*classify(small_world, tmp_path / "out", "--train", data))
    assert message == (
        f"tinygrad-peft: {data}: 1 of 5 examples have more tokens than the model's 48 positions: "
        "use --max-length 48\n"
    )
    assert not (tmp_path / "out").exists()
    commands.ok(*classify(small_world, tmp_path / "out", "--train", data, "--max-length", "48"))


def test_a_tokenizer_of_another_model_is_told_before_training(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    model = copytree(small_world / "bert", tmp_path / "model")
    write_tokenizer(model, word_tokenizer([*(f"word{i}" for i in range(30)), *WORDS]))
    message = commands.fails(*classify(small_world, tmp_path / "out", "--model", model))
    assert "the tokenizer gives token 44, and the model has 15 tokens (0..14)" in message
    assert "the tokenizer (45 tokens) belongs to another model" in message
    assert not (tmp_path / "out").exists()


def test_labels_that_only_the_evaluation_has_are_told_with_their_file(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    data = write_jsonl(tmp_path / "eval.jsonl", [*reviews(4), {"text": "good", "label": "poss"}])
    message = commands.fails(*classify(small_world, tmp_path / "out", "--eval", data))
    assert message.splitlines() == [
        f"tinygrad-peft: {data}: labels that training does not know ('neg', 'pos'):",
        "  'poss' in 1 of 5 examples; did you mean 'pos'?",
    ]
    assert not (tmp_path / "out").exists()


def test_one_label_alone_is_no_classification(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    data = write_jsonl(tmp_path / "one.jsonl", [{"text": "good", "label": "pos"}])
    message = commands.fails(*classify(small_world, tmp_path / "out", "--train", data))
    assert f"{data}: every example has the label 'pos', expected two or more" in message


def test_an_encoder_is_no_language_model(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    model = small_world / "bert"
    message = commands.fails(*complete(small_world, tmp_path / "out", "--model", model))
    assert f"{model} has no language-model head, which --task causal-lm needs" in message
    assert "--task sequence-classification" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("config.json", "a model"),
        ("adapter_config.json", "an adapter"),
        ("recipe.json", "an adapter"),
    ],
)
def test_what_somebody_made_is_not_trained_over(
    small_world: Path, tmp_path: Path, commands: Commands, file: str, what: str
) -> None:
    (tmp_path / file).write_text("{}", encoding="utf-8")
    message = commands.fails(*classify(small_world, tmp_path))
    assert f"--out {tmp_path}: there is {what} in it ({file}): name another folder" in message
    assert tree(tmp_path) == {file}


def test_a_file_in_the_place_of_the_folder_is_told_before_the_model_is_read(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below"):
        message = commands.fails(*classify(small_world, out, "--model", "nowhere"))
        assert message == f"tinygrad-peft: --out {out}: {file} is a file, expected a folder\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_told(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    tmp_path.chmod(0o500)
    message = commands.fails(*classify(small_world, tmp_path / "out"))
    assert f"no right to write in {tmp_path}" in message
