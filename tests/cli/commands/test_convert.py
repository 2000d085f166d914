"""convert: one adapter, as each library has it."""

from pathlib import Path

import pytest

from tests.cli.commands.test_merge import finetuned
from tests.cli.toys import Commands

BEFORE_NORM = "adapter:placement=parallel,reads=residual,bottleneck_dim=4"


@pytest.mark.parametrize(
    ("layout", "method", "weights"),
    [
        ("adapterhub", BEFORE_NORM, "adapter.safetensors"),
        ("mlx-lm", "lora:r=4,target_modules=all-linear", "adapters.safetensors"),
    ],
)
def test_an_adapter_evaluates_to_the_same_in_every_layout(
    layout: str,
    method: str,
    weights: str,
    small_world: Path,
    tmp_path: Path,
    commands: Commands,
) -> None:
    model, out = small_world / "llama", tmp_path / "there"
    adapter = finetuned(commands, small_world, "llama", tmp_path / "here", method)
    told = commands.ok("convert", "--adapter", adapter, "--layout", layout, "--out", out).out
    assert told.startswith(f"wrote the adapter into {out} in ")
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", weights}
    again = tmp_path / "again"
    back = ("convert", "--adapter", out, "--layout", "peft", "--out", again, "--model", model)
    assert commands.ok(*back, "--json").json == {
        "out": str(again),
        "layout": "Hugging Face PEFT",
    }
    data = ("--data", small_world / "more-definitions.jsonl", "--json")
    losses = {
        commands.ok("evaluate", "--model", model, "--adapter", folder, *data).json["loss"]
        for folder in (adapter, out, again)
    }
    assert len(losses) == 1
    for named in ((), ("--model", model)):
        assert commands.ok("inspect", out, *named, "--json").json["sound"]
    prompted = ("--prompt", "a", "--max-new-tokens", "2")
    commands.ok("generate", "--model", model, "--adapter", out, *prompted)


def test_model_is_needed_where_the_adapter_does_not_describe_it(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    adapter = finetuned(commands, small_world, "llama", tmp_path / "here", "lora:r=4")
    commands.ok("convert", "--adapter", adapter, "--layout", "mlx-lm", "--out", tmp_path / "there")
    to_peft = ("convert", "--adapter", tmp_path / "there", "--layout", "peft")
    told = commands.fails(*to_peft, "--out", tmp_path / "again")
    assert "does not describe its model: expected --model" in told
    told = commands.fails(*to_peft, "--out", tmp_path / "there")
    assert "there is an adapter in it" in told


def test_empty_output_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Commands
) -> None:
    monkeypatch.chdir(tmp_path)
    told = commands.fails("convert", "--adapter", "here", "--layout", "mlx-lm", "--out", "")
    assert "Invalid value for '--out': expected a path or a name, got ''" in told
    assert not list(tmp_path.iterdir())


def test_adapter_that_a_layout_cannot_hold_is_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    adapter = finetuned(commands, small_world, "bert", tmp_path / "here", "lora:r=4")
    arguments = ("convert", "--adapter", adapter, "--layout", "mlx-lm", "--out", tmp_path / "there")
    told = commands.fails(*arguments)
    assert "mlx-lm's layout cannot hold 'default':" in told
    assert "mlx-lm: expected one of gpt2, llama, got bert" in told
    assert "modules_to_save: mlx-lm trains no whole modules" in told
    assert not (tmp_path / "there").exists()
