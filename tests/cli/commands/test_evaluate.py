"""evaluate: the numbers that finetune reported."""

from pathlib import Path

import numpy as np
import pytest

from tests.cli.toys import Commands, reviews, write_csv, write_jsonl
from tinygrad_peft.models import Tokenizer, load_model

TASKS = {
    "sequence-classification": ("bert", "reviews"),
    "causal-lm": ("gpt2", "definitions"),
}


@pytest.mark.parametrize("task", list(TASKS))
def test_the_adapter_gives_what_finetune_reported(
    small_world: Path, tmp_path: Path, commands: Commands, task: str
) -> None:
    model, data = TASKS[task]
    shared = ("--model", small_world / model, "--batch-size", "8", "--json")
    evaluation = small_world / f"more-{data}.jsonl"
    told = commands.ok(
        *("finetune", "--task", task, "--train", small_world / f"{data}.jsonl"),
        *("--eval", evaluation, "--method", "lora:r=4", "--epochs", "2", "--lr", "0.01"),
        *("--out", tmp_path / "out", *shared),
    ).json
    seen = commands.ok("evaluate", "--adapter", tmp_path / "out", "--data", evaluation, *shared)
    assert seen.err == ""
    assert (seen.json["loss"], seen.json["accuracy"]) == (told["eval_loss"], told["eval_accuracy"])
    base = commands("evaluate", "--data", evaluation, *shared)
    assert base.status == (2 if model == "bert" else 0)
    if model == "gpt2":
        assert base.json["loss"] != seen.json["loss"]
        assert seen.json["perplexity"] == np.exp(float(str(seen.json["loss"])))


def test_a_classifier_needs_no_adapter(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    rows = reviews(16, seed=1)
    arguments = ("evaluate", "--model", small_world / "classifier", "--json", "--data")
    told = commands.ok(*arguments, write_csv(tmp_path / "data.csv", rows)).json
    assert told == commands.ok(*arguments, write_jsonl(tmp_path / "data.jsonl", rows)).json

    model = load_model(small_world / "classifier")
    tokenizer = Tokenizer.from_directory(small_world / "classifier")
    ids = [np.array([tokenizer.encode(str(row["text"]))]) for row in rows]
    names = [model.config.label_names[int(model(one).data.argmax())] for one in ids]
    right = [name == row["label"] for name, row in zip(names, rows, strict=True)]
    assert (told["examples"], told["accuracy"]) == (16, np.mean(right))


def test_people_get_the_same_numbers_as_a_table(small_world: Path, commands: Commands) -> None:
    data = ("--data", small_world / "definitions.jsonl")
    ran = commands.ok("evaluate", "--model", small_world / "llama", *data)
    told = commands.ok("evaluate", "--model", small_world / "llama", *data, "--json").json
    lines = dict(line.split() for line in ran.out.splitlines())
    assert lines["examples"] == str(told["examples"]) == "24"
    assert lines["loss"] == f"{told['loss']:.4f}"
    assert "accuracy" not in lines


def test_labels_that_the_model_does_not_know_are_told_with_their_file(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "good film", "label": "poss"}])
    message = commands.fails("evaluate", "--model", small_world / "classifier", "--data", data)
    assert message.startswith(f"tinygrad-peft: {data}: unknown labels")
    assert "did you mean 'pos'?" in message


def test_data_of_another_task_is_told(small_world: Path, commands: Commands) -> None:
    data = small_world / "definitions.jsonl"
    message = commands.fails("evaluate", "--model", small_world / "classifier", "--data", data)
    assert f"{data} cannot be used for sequence-classification: 24 bad lines" in message
    assert "expected 'text' and 'label', got 'prompt', 'completion'" in message


def test_a_batch_size_below_one_is_told(small_world: Path, commands: Commands) -> None:
    data = ("--data", small_world / "definitions.jsonl", "--batch-size", "0")
    message = commands.fails("evaluate", "--model", small_world / "gpt2", *data)
    assert message == "tinygrad-peft: batch_size: expected at least 1, got 0\n"
