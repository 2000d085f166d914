"""finetune --adapter: an adapter is trained further."""

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.toys import Commands

SHORT = ("--batch-size", "8", "--quiet", "--json")


def classify(world: Path, out: Path, *start: str | Path) -> list[str | Path]:
    return [
        *("finetune", "--model", world / "bert", "--task", "sequence-classification"),
        *("--train", world / "reviews.jsonl", "--eval", world / "more-reviews.jsonl"),
        *("--out", out, *start, *SHORT),
    ]


def complete(world: Path, out: Path, *start: str | Path) -> list[str | Path]:
    data = ("--train", world / "definitions.jsonl", "--task", "causal-lm")
    return ["finetune", "--model", world / "llama", *data, "--out", out, *start, *SHORT]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_classifier_is_trained_further_with_its_recipe_and_its_head(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    recipe = ("--method", "lora:r=3,lora_dropout=0.1", "--pooling", "cls", "--epochs", "4")
    commands.ok(*classify(small_world, first, *recipe))
    told = commands.ok(*classify(small_world, second, "--adapter", first, "--lr", "1e-9")).json
    # At next to no rate it is still the first: its weights, head and pooling came with it.
    evaluated = commands.ok(
        *("evaluate", "--model", small_world / "bert", "--adapter", first),
        *("--data", small_world / "more-reviews.jsonl", "--json"),
    ).json
    assert told["eval_accuracy"] == evaluated["accuracy"]
    assert told["eval_loss"] == pytest.approx(evaluated["loss"], rel=1e-5)
    one, other = (json.loads((f / "recipe.json").read_bytes()) for f in (first, second))
    assert one == other
    assert any("classifier" in name for name in arrays(second))
    assert json.loads((second / "metrics.json").read_bytes())["job"]["adapter"] == str(first)


def test_all_its_weights_are_trained(small_world: Path, tmp_path: Path, commands: Commands) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    commands.ok(*classify(small_world, first, "--method", "lora:r=2"))
    commands.ok(*classify(small_world, second, "--adapter", first, "--lr", "0.01"))
    before, after = arrays(first), arrays(second)
    assert before.keys() == after.keys()
    assert not any(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("layout", ["AdapterHub", "mlx-lm"])
def test_an_adapter_of_another_library_is_trained_further(
    small_world: Path, tmp_path: Path, commands: Commands, layout: str
) -> None:
    methods = {
        "AdapterHub": "adapter:bottleneck_dim=4",
        "mlx-lm": "lora:r=2,target_modules=q_proj+v_proj",
    }
    first, other, second = tmp_path / "first", tmp_path / "other", tmp_path / "second"
    commands.ok(*complete(small_world, first, "--method", methods[layout]))
    commands.ok(
        *("convert", "--adapter", first, "--layout", layout, "--out", other),
        *("--model", small_world / "llama"),
    )
    commands.ok(*complete(small_world, second, "--adapter", other, "--lr", "0.01"))
    before, after = arrays(first), arrays(second)
    assert before.keys() == after.keys()
    assert not all(np.array_equal(before[name], after[name]) for name in before)


def test_a_recipe_of_several_methods_is_trained_further(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    commands.ok(*complete(small_world, first, "--method", "lora:r=2", "--method", "prompt_tuning"))
    commands.ok(*complete(small_world, second, "--adapter", first))
    assert json.loads((second / "recipe.json").read_bytes())["steps"] == [
        "0-lora",
        "1-prompt_tuning",
    ]


def test_either_a_method_or_an_adapter_is_expected(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    both = ("--method", "lora", "--adapter", tmp_path)
    for got, start in {"neither": (), "both": both}.items():
        message = commands.fails(*complete(small_world, tmp_path / "out", *start))
        assert f"expected --method, or --adapter to start from, got {got}" in message


@pytest.mark.parametrize("option", [("--new-head",), ("--pooling", "cls")])
def test_the_head_comes_with_the_adapter(
    small_world: Path, tmp_path: Path, commands: Commands, option: tuple[str, ...]
) -> None:
    message = commands.fails(
        *classify(small_world, tmp_path / "out", "--adapter", tmp_path, *option)
    )
    assert f"{option[0]}: the head comes with the adapter" in message


def test_an_adapter_without_a_head_does_not_start_a_classifier(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    first = tmp_path / "first"
    commands.ok(*complete(small_world, first, "--method", "lora:r=2"))
    start = ("--adapter", first, "--model", small_world / "llama")
    message = commands.fails(*classify(small_world, tmp_path / "out", *start))
    assert f"neither {first} nor {small_world / 'llama'} has a classification head" in message


def test_labels_that_its_head_does_not_have_are_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    first = tmp_path / "first"
    commands.ok(*classify(small_world, first, "--method", "lora:r=2"))
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": "fine"}\n{"text": "bad", "label": "neg"}\n')
    start = ("--adapter", first, "--train", data)
    message = commands.fails(*classify(small_world, tmp_path / "out", *start))
    expected = f"{data}: expected labels of the head of {first}, 'neg', 'pos', got 'fine', 'neg'"
    assert message == f"tinygrad-peft: {expected}\n"


def test_a_folder_without_an_adapter_is_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    empty = tmp_path / "empty"
    copytree(small_world / "bert", empty)
    message = commands.fails(*complete(small_world, tmp_path / "out", "--adapter", empty))
    assert str(empty) in message
