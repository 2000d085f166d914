"""finetune: what it trains, writes and says."""

import json
from pathlib import Path

from tests.cli.toys import LABELS, Commands

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
