"""Every command says that weights are NaN or infinite, and makes nothing of them."""

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.commands.test_merge import finetuned
from tests.cli.toys import Commands


@pytest.fixture
def model(small_world: Path, tmp_path: Path) -> Path:
    """A language model with infinity in its last norm."""
    folder = copytree(small_world / "llama", tmp_path / "model")
    break_one(folder / "model.safetensors", "model.norm.weight")
    return folder


def break_one(file: Path, name: str) -> None:
    change_one(file, name, np.inf)


def change_one(file: Path, name: str, number: float, place: int = 0) -> None:
    weights = load_file(file)
    weights[name].reshape(-1)[place] = number
    save_file(weights, file)


@pytest.mark.filterwarnings("default::tinygrad_peft.errors.NonFiniteWarning")
@pytest.mark.parametrize(
    ("command", "result"),
    [("evaluate", "the evaluation loss is nan"), ("generate", "the next token's logits: ")],
)
def test_broken_models_give_no_numbers_and_no_text(
    model: Path, small_world: Path, commands: Commands, command: str, result: str
) -> None:
    data = ("--data", small_world / "definitions.jsonl")
    arguments = (
        command,
        "--model",
        model,
        *(data if command == "evaluate" else ("--prompt", "a", "--max-new-tokens", "3")),
    )
    message = commands.fails(*arguments)
    assert "expected finite weights, got: model.norm.weight: 1 infinite of 16 numbers" in message
    message = commands.fails(*arguments, "--allow-nonfinite")
    assert "warning: " in message
    assert result in message


@pytest.mark.filterwarnings("default::tinygrad_peft.errors.NonFiniteWarning")
def test_training_can_begin_from_weights_with_infinity(
    model: Path, small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    data = small_world / "definitions.jsonl"
    given = ("--model", model, "--train", data, "--method", "lora:r=2", "--out", tmp_path / "out")
    for command in (
        ("finetune", *given, "--task", "causal-lm", "--quiet"),
        ("compare", *given, "--eval", data, "--quiet"),
    ):
        assert "expected finite weights, got: model.norm.weight" in commands.fails(*command)
    stopped = commands("finetune", *given, "--task", "causal-lm", "--quiet", "--allow-nonfinite")
    assert stopped.status == 2
    assert "warning: " in stopped.err
    assert "the loss is nan" in stopped.err
    # The row of "!" in the embedding, which no text has, spoils nothing.
    change_one(model / "model.safetensors", "model.norm.weight", 1.0)
    change_one(model / "model.safetensors", "model.embed_tokens.weight", np.nan, 2 * 16)
    commands.ok("finetune", *given, "--task", "causal-lm", "--quiet", "--allow-nonfinite")


def test_broken_adapters_are_refused_by_every_command(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    adapter = finetuned(commands, small_world, "llama", tmp_path / "adapter", "lora:r=4")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    break_one(adapter / "adapter_model.safetensors", name)
    told = f"got: {name}: 1 infinite of 64 numbers"
    given = ("--model", small_world / "llama", "--adapter", adapter)
    out = tmp_path / "out"
    for arguments in (
        ("evaluate", *given, "--data", small_world / "definitions.jsonl"),
        ("generate", *given, "--prompt", "a"),
        ("merge", *given, "--out", out),
        ("combine", *given, "--weights", "1", "--out", out),
    ):
        assert told in commands.fails(*arguments), arguments
    assert not out.exists()
    commands.ok("inspect", adapter)
    seen = commands("inspect", adapter, "--weights")
    assert (seen.status, f"- {name}: 1 infinite of 64" in seen.out) == (1, True)


def test_weights_beyond_floats_are_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    adapter = finetuned(commands, small_world, "llama", tmp_path / "adapter", "lora:r=4")
    out = tmp_path / "out"
    given = ("--adapter", adapter, "--weights", "1e300", "--out", out)
    for more in ((), ("--rank", "1"), ("--type", "ties")):
        message = commands.fails("combine", *given, *more)
        assert "q_proj" in message, message
    assert not out.exists()
