"""Heads for regression and for several labels at once: kept, and refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cli.toys import Commands, reviews, write_jsonl, write_model
from tests.peft.small import BERT
from tinygrad_peft import load_model
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models import save_model
from tinygrad_peft.nn.config import ProblemType
from tinygrad_peft.peft import PeftModel, get_peft_model
from tinygrad_peft.train import evaluation
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft_lora import LoraConfig

CASES: list[tuple[int, ProblemType | None, str]] = [
    (1, "regression", "a head for regression with 1 output"),
    (1, None, "a head for regression with 1 output"),
    (2, "multi_label_classification", "a head for multi_label_classification with 2 outputs"),
]


def checkpoint(folder: Path, labels: int, problem_type: ProblemType | None) -> Path:
    config = replace(
        BERT, head="classification", num_labels=labels, problem_type=problem_type, pooler=True
    )
    return write_model(folder, config)


@pytest.mark.parametrize(("labels", "problem_type", "told"), CASES)
def test_nothing_is_measured_or_trained_under_a_softmax(
    tmp_path: Path,
    commands: Commands,
    labels: int,
    problem_type: ProblemType | None,
    told: str,
) -> None:
    model = checkpoint(tmp_path / "model", labels, problem_type)
    data = write_jsonl(tmp_path / "data.jsonl", reviews(8))
    rest = "only heads that choose one class of several are trained and evaluated"
    message = commands.fails("evaluate", "--model", model, "--data", data)
    assert message == f"tinygrad-peft: {told}: {rest}\n"
    arguments = (
        *("--model", model, "--train", data, "--eval", data, "--method", "lora:r=2", "--quiet"),
        *("--task", "sequence-classification", "--out", tmp_path / "out"),
    )
    for command in ("finetune", "compare"):
        message = commands.fails(command, *arguments)
        assert message == f"tinygrad-peft: {model} has {told}: {rest} (--new-head makes one)\n"
    commands.ok("finetune", *arguments, "--new-head")
    # The new head is for another problem, which is said wherever the adapter goes.
    adapter, merged = ("--adapter", tmp_path / "out"), tmp_path / "merged"
    before = commands.ok("evaluate", "--model", model, *adapter, "--data", data).out
    commands.ok("merge", "--model", model, *adapter, "--out", merged)
    assert "problem_type" not in json.loads((merged / "config.json").read_text())
    assert commands.ok("evaluate", "--model", merged, "--data", data).out == before
    with pytest.raises(ValueError, match=told):
        evaluation.evaluate(load_model(model), EncodedData([Encoded((2, 4, 3), 0)]), batch_size=1)


def test_an_adapter_for_another_problem_is_refused(tmp_path: Path) -> None:
    model = load_model(checkpoint(tmp_path / "model", 2, "multi_label_classification"))
    get_peft_model(model, LoraConfig(r=2)).save_pretrained(tmp_path / "adapter")
    other = load_model(checkpoint(tmp_path / "other" / "model", 2, None))
    expected = "problem_type: expected multi_label_classification, got single_label_classification"
    with pytest.raises(CheckpointError, match=expected):
        PeftModel.from_pretrained(other, tmp_path / "adapter")
    same = load_model(tmp_path / "model")
    PeftModel.from_pretrained(same, tmp_path / "adapter")


@pytest.mark.parametrize(("labels", "problem_type", "told"), CASES)
def test_the_problem_is_inspected_and_saved_again(
    tmp_path: Path,
    commands: Commands,
    labels: int,
    problem_type: ProblemType | None,
    told: str,
) -> None:
    folder = checkpoint(tmp_path / "model", labels, problem_type)
    assert told.split()[3] in commands.ok("inspect", folder).out
    model = load_model(folder)
    save_model(model, tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written.get("problem_type") == problem_type
    ids = np.array([[2, 4, 5, 3]])
    np.testing.assert_array_equal(load_model(tmp_path / "again")(ids).data, model(ids).data)
