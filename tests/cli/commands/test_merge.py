"""merge: a plain checkpoint that says the same."""

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from safetensors import safe_open

from tests.cli.toys import Commands
from tests.peft.small import shake
from tinygrad_peft import get_peft_model, load_model, save_model
from tinygrad_peft.arrays import Array
from tinygrad_peft.models import SaveDtype
from tinygrad_peft_lora import LoraConfig

TASKS = {
    "bert": ("sequence-classification", "reviews"),
    "gpt2": ("causal-lm", "definitions"),
    "llama": ("causal-lm", "definitions"),
}


def finetuned(commands: Commands, world: Path, model: str, out: Path, *methods: str) -> Path:
    task, data = TASKS[model]
    commands.ok(
        *("finetune", "--model", world / model, "--task", task, "--quiet"),
        *("--train", world / f"{data}.jsonl", "--lr", "0.01", "--batch-size", "8", "--out", out),
        *(argument for method in methods for argument in ("--method", method)),
    )
    return out


@pytest.mark.parametrize("model", list(TASKS))
def test_the_merged_model_evaluates_to_the_same(
    small_world: Path, tmp_path: Path, commands: Commands, model: str
) -> None:
    methods = ("lora:r=4", "lora:r=2,target_modules=all-linear")
    adapter = finetuned(commands, small_world, model, tmp_path / "adapter", *methods)
    merged = tmp_path / "merged"
    arguments = ("merge", "--model", small_world / model, "--adapter", adapter, "--out", merged)
    assert commands.ok(*arguments).out == f"merged into {merged}\n"
    data = ("--data", small_world / f"more-{TASKS[model][1]}.jsonl", "--json")
    with_adapter = ("--model", small_world / model, "--adapter", adapter)
    expected = commands.ok("evaluate", *with_adapter, *data).json
    got = commands.ok("evaluate", "--model", merged, *data).json
    assert got["accuracy"] == expected["accuracy"]
    assert got["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize(("dtype", "code"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_weights_are_stored_in_the_dtype_that_is_asked_for(
    small_world: Path, tmp_path: Path, commands: Commands, dtype: str, code: str
) -> None:
    adapter = finetuned(commands, small_world, "llama", tmp_path / "adapter", "lora:r=4")
    merged = tmp_path / "merged"
    arguments = ("merge", "--model", small_world / "llama", "--adapter", adapter)
    told = commands.ok(*arguments, "--out", merged, "--dtype", dtype, "--json").json
    assert told == {"out": str(merged), "dtype": dtype}
    with safe_open(merged / "model.safetensors", framework="numpy") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {code}  # noqa: SIM118
    data = ("--data", small_world / "more-definitions.jsonl", "--json")
    exact = commands.ok("evaluate", "--model", small_world / "llama", "--adapter", adapter, *data)
    rounded = commands.ok("evaluate", "--model", merged, *data)
    assert rounded.json["loss"] == pytest.approx(exact.json["loss"], rel=1e-2)


def test_neither_the_model_nor_the_adapter_is_written_over(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    model = copytree(small_world / "llama", tmp_path / "model")
    adapter = finetuned(commands, small_world, "llama", tmp_path / "adapter", "lora:r=4")
    before = (model / "model.safetensors").read_bytes()
    arguments = ("merge", "--model", model, "--adapter", adapter, "--out")
    message = commands.fails(*arguments, tmp_path / "adapter" / ".." / "model")
    assert "is the model itself: merge into another folder" in message
    assert (model / "model.safetensors").read_bytes() == before
    message = commands.fails(*arguments, adapter)
    assert f"--out {adapter}: there is an adapter in it (adapter_config.json)" in message
    assert not (adapter / "config.json").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_base_of_that_dtype_is_merged_in_float32_and_rounded_once(
    small_world: Path, tmp_path: Path, commands: Commands, dtype: SaveDtype
) -> None:
    model = copytree(small_world / "llama", tmp_path / "model")
    save_model(load_model(model), model, dtype=dtype)
    base = load_model(model)
    peft = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    shake(peft)
    peft.save_pretrained(tmp_path / "adapter")
    expected = peft.merge_and_unload().state_dict()
    arguments = ("merge", "--model", model, "--adapter", tmp_path / "adapter", "--out")
    commands.ok(*arguments, tmp_path / "whole")
    commands.ok(*arguments, tmp_path / "rounded", "--dtype", dtype)
    whole, rounded = (load_model(tmp_path / n).state_dict() for n in ("whole", "rounded"))
    changed = 0
    for name, exact in whole.items():
        np.testing.assert_array_equal(exact, expected[name])
        off = np.abs(rounded[name].astype(np.float64) - exact)
        for neighbour in neighbours(rounded[name], dtype):
            assert (off <= np.abs(neighbour.astype(np.float64) - exact)).all(), name
        changed += bool(off.any())
    assert changed == 7 * base.config.num_hidden_layers  # the layers that were adapted


def neighbours(values: Array, dtype: SaveDtype) -> list[Array]:
    """The numbers of that dtype just above and just below each of the values."""
    if dtype == "float16":
        half = values.astype(np.float16)
        return [np.nextafter(half, np.float16(side)) for side in (np.inf, -np.inf)]
    bits = values.view(np.uint32)
    return [(bits + np.uint32(0x10000)).view(np.float32), (bits - 0x10000).view(np.float32)]


def test_a_file_in_the_place_of_the_folder_is_told(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    (tmp_path / "file").touch()
    arguments = ("merge", "--model", small_world / "llama", "--adapter", tmp_path / "nowhere")
    message = commands.fails(*arguments, "--out", tmp_path / "file")
    assert message.endswith(f"{tmp_path / 'file'} is a file, expected a folder\n")


def test_nothing_is_written_for_a_model_without_a_tokenizer(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    adapter = finetuned(commands, small_world, "llama", tmp_path / "adapter", "lora:r=4")
    model = copytree(small_world / "llama", tmp_path / "model")
    (model / "tokenizer.json").unlink()
    out = tmp_path / "merged"
    message = commands.fails("merge", "--model", model, "--adapter", adapter, "--out", out)
    assert message.startswith(f"tinygrad-peft: no tokenizer in {model}")
    assert not out.exists()
