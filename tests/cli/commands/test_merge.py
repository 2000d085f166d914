"""merge: a plain checkpoint that says the same."""

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from safetensors import safe_open

from tests.cli.toys import Commands
from tests.files.test_claims import another_process
from tests.peft.small import shake
from tinygrad_peft import get_peft_model, load_model, save_model
from tinygrad_peft.arrays import Array
from tinygrad_peft.files import saving
from tinygrad_peft.models import SaveDtype, load_tokenizer
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


def test_templates_settings_of_generation_and_licence_go_with_the_model(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    model, merged = copytree(small_world / "llama", tmp_path / "llama"), tmp_path / "merged"
    companions = {
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tools.jinja": "{{ tools }}",
        "generation_config.json": '{"eos_token_id": [1, 2]}',
        "LICENSE": "MIT",
    }
    for name, text in companions.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(text)
    (model / "README.md").write_text("the model itself")
    adapter = finetuned(commands, small_world, "llama", tmp_path / "adapter", "lora:r=4")
    commands.ok("merge", "--model", model, "--adapter", adapter, "--out", merged)
    assert {name: (merged / name).read_text() for name in companions} == companions
    tokenizer = (model / "tokenizer.json").read_bytes()
    assert (merged / "tokenizer.json").read_bytes() == tokenizer
    assert not (merged / "README.md").exists()
    assert load_tokenizer(merged).end_ids == {1, 2}


@pytest.mark.parametrize(("dtype", "code"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_weights_are_stored_in_the_given_dtype(
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
    assert "name another folder, or give --overwrite" in message
    assert not (adapter / "config.json").exists()


def test_overwriting_leaves_no_file_of_earlier_work_and_every_other(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out = finetuned(commands, small_world, "llama", tmp_path / "out", "lora:r=4", "ia3")
    (out / "notes.txt").write_text("mine")
    (out / ".git").mkdir()
    (out / ".git" / "config").write_text("mine")
    adapter = finetuned(commands, small_world, "llama", tmp_path / "adapter", "lora:r=4")
    model = ("--model", small_world / "llama")
    commands.ok("merge", *model, "--adapter", adapter, "--out", out, "--overwrite")
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert {p.name for p in out.iterdir()} == {".git", "notes.txt", *names}
    assert commands.ok("inspect", out, "--json").json["kind"] == "model"
    assert (out / ".git" / "config").read_text() == (out / "notes.txt").read_text() == "mine"
    commands.ok("convert", "--adapter", adapter, "--layout", "mlx-lm", "--out", out, "--overwrite")
    names = ["adapter_config.json", "adapters.safetensors"]
    assert {p.name for p in out.iterdir()} == {".git", "notes.txt", *names}
    both = ("--adapter", adapter, "--adapter", adapter, "--weights", "0.5,0.5")
    message = commands.fails("combine", *both, "--out", out)
    assert "there is an adapter in it (adapter_config.json)" in message
    commands.ok("combine", *both, "--out", out, "--overwrite")
    names = ["adapter_config.json", "adapter_model.safetensors", "recipe.json"]
    assert {p.name for p in out.iterdir()} == {".git", "notes.txt", *names}


def test_a_folder_that_another_run_writes_is_refused_before_any_work(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    arguments = ("merge", "--model", small_world / "llama", "--adapter", tmp_path / "nowhere")
    with another_process(tmp_path / "out") as process:
        message = commands.fails(*arguments, "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'} is being written by process {process}, since " in message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_base_in_float16_is_merged_in_float32_and_rounded_once(
    small_world: Path, tmp_path: Path, commands: Commands, dtype: SaveDtype
) -> None:
    model = copytree(small_world / "llama", tmp_path / "model")
    with saving(model) as save:
        save_model(load_model(model), save.staged, dtype=dtype, overwrite=True)
        load_tokenizer(model).save(save.staged)
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


def test_file_in_place_of_the_folder_is_refused(
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
