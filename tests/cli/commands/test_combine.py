from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands.test_merge import finetuned
from tests.cli.toys import Commands
from tinygrad_peft import PeftModel, load_model
from tinygrad_peft_lora import LoraConfig, LoraLinear


def deltas(
    model: Path, adapter: Path
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    peft = PeftModel.from_pretrained(load_model(model), adapter)
    layers = {r.seam.path: r.after for r in peft.record.rewrites}
    return {path: m.delta() for path, m in layers.items() if isinstance(m, LoraLinear)}


@pytest.mark.parametrize("named", [False, True], ids=["by themselves", "with the model"])
def test_the_combination_is_the_weighted_sum(
    small_world: Path, tmp_path: Path, commands: Commands, named: bool
) -> None:
    model = small_world / "llama"
    one = finetuned(commands, small_world, "llama", tmp_path / "one", "lora:r=4")
    other = finetuned(commands, small_world, "llama", tmp_path / "other", "lora:r=2,lora_alpha=5")
    out = tmp_path / "both"
    arguments: list[str | Path] = [
        "combine",
        "--adapter",
        one,
        "--adapter",
        other,
        "--weights",
        "0.7,-0.3",
    ]
    told = commands.ok(*arguments, "--out", out, *(("--model", model) if named else ()))
    assert told.out == f"combined 2 adapters into {out}\n"
    first, second, both = (deltas(model, folder) for folder in (one, other, out))
    for path, delta in both.items():
        expected = 0.7 * first[path] - 0.3 * second[path]
        np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-7)


def test_loss_from_a_smaller_rank_is_reported(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    one = finetuned(commands, small_world, "llama", tmp_path / "one", "lora:r=4")
    other = finetuned(commands, small_world, "llama", tmp_path / "other", "lora:r=2")
    arguments: list[str | Path] = [
        "combine",
        "--adapter",
        one,
        "--adapter",
        other,
        "--weights",
        "1,1",
        "--rank",
        "1",
    ]
    told = commands.ok(*arguments, "--out", tmp_path / "both", "--json").json
    lost = told["lost"]
    assert isinstance(lost, dict)
    assert 0 < max(lost.values()) < 1
    assert told["weights"] == [1.0, 1.0]
    again = commands.ok(*arguments, "--out", tmp_path / "again")
    assert "the rank leaves out up to" in again.out


def test_heads_are_summed_without_the_model_only_where_it_takes_no_part(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    adapters: list[str | Path] = []
    for name in ("one", "other"):
        folder = finetuned(commands, small_world, "bert", tmp_path / name, "lora:r=2")
        adapters += ["--adapter", folder]
    message = commands.fails("combine", *adapters, "--weights", "1,1", "--out", tmp_path / "both")
    assert "the weights sum to 2, not 1" in message
    assert not (tmp_path / "both").exists()
    commands.ok("combine", *adapters, "--weights", "0.5,0.5", "--out", tmp_path / "both")


def test_a_module_that_one_alone_trained_whole_needs_the_model(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    adapters: list[str | Path] = []
    for name, method in (("one", "lora:r=2"), ("other", "lora:r=2,modules_to_save=LayerNorm")):
        folder = finetuned(commands, small_world, "bert", tmp_path / name, method)
        adapters += ["--adapter", folder]
    arguments = ("combine", *adapters, "--weights", "0.5,0.5", "--out", tmp_path / "both")
    assert "did not train the same modules whole" in commands.fails(*arguments)
    assert not (tmp_path / "both").exists()


def test_missing_folder_is_named(tmp_path: Path, commands: Commands) -> None:
    arguments = ("combine", "--adapter", tmp_path / "nowhere", "--weights", "1")
    assert "nowhere: no such folder\n" in commands.fails(*arguments, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("1", "weights: expected 2, one per adapter ('adapter_1', 'adapter_2'), got 1"),
        ("a,b", "expected numbers, as in 0.7,0.3, got 'a,b'"),
        ("nan,1", "expected numbers, as in 0.7,0.3, got 'nan,1'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    small_world: Path, tmp_path: Path, commands: Commands, weights: str, expected: str
) -> None:
    one = finetuned(commands, small_world, "llama", tmp_path / "one", "lora:r=4")
    out = tmp_path / "both"
    message = commands.fails(
        "combine", "--adapter", one, "--adapter", one, "--weights", weights, "--out", out
    )
    assert expected in message
    assert not out.exists()


def test_negative_seed_is_refused(tmp_path: Path, commands: Commands) -> None:
    arguments = ("combine", "--adapter", "one", "--weights", "1", "--seed", "-1")
    told = commands.fails(*arguments, "--out", tmp_path / "out")
    assert told == "tinygrad-peft: --seed: expected at least 0, got -1\n"


def test_folder_that_does_not_describe_its_model_needs_one(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    one = finetuned(commands, small_world, "llama", tmp_path / "one", "lora:r=4")
    (one / "recipe.json").unlink()
    arguments: list[str | Path] = [
        "combine",
        "--adapter",
        one,
        "--weights",
        "0.5",
        "--out",
        tmp_path / "half",
    ]
    assert "expected --model" in commands.fails(*arguments)
    commands.ok(*arguments, "--model", small_world / "llama")
    loaded = PeftModel.from_pretrained(load_model(small_world / "llama"), tmp_path / "half")
    assert isinstance(loaded.recipe[0], LoraConfig)
