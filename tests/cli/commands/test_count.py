"""count: parameters from shapes alone."""

import json
from pathlib import Path
from shutil import copytree

import pytest

from tests.cli.toys import Commands


@pytest.mark.parametrize(
    ("shape", "targets", "trainable"),
    [
        ("llama-7b", "q_proj+v_proj", 4_194_304),
        ("gpt2", "c_attn", 294_912),
        ("roberta-base", "query+value", 294_912),
    ],
)
def test_published_counts_come_out(
    commands: Commands, shape: str, targets: str, trainable: int
) -> None:
    arguments = ("count", "--shape", shape, "--method", f"lora:r=8,target_modules={targets}")
    told = commands.ok(*arguments, "--json").json
    assert (told["shape"], told["trainable"]) == (shape, trainable)
    assert f"{trainable:,}" in commands.ok(*arguments).out


def test_memory_follows_from_the_counts(commands: Commands) -> None:
    told = commands.ok("count", "--shape", "gpt2", "--method", "lora:r=8", "--json").json
    assert told["total"] == 124_439_808 + 294_912
    assert told["percent"] == 100 * 294_912 / (124_439_808 + 294_912)
    matrices = 12 * (768 * 3 * 768 + 768 * 768 + 2 * 768 * 3072)
    codes, rest = matrices * (4 + 8 / 64 + 32 / 16_384) / 8, 124_439_808 - matrices
    trained = 4 * 294_912
    frozen = {
        "float32": 4 * 124_439_808,
        "float16": 2 * 124_439_808,
        "nf4": codes + 4 * rest,
        "nf4_float16": codes + 2 * rest,
    }
    assert told["bytes"] == {
        name: {
            "weights": size + trained,
            "gradients": trained,
            "optimizer": 2 * trained,
            "training": size + 4 * trained,
        }
        for name, size in frozen.items()
    }


def test_full_is_the_whole_model_in_float32_or_all_in_float16(commands: Commands) -> None:
    arguments = ("count", "--shape", "llama-7b", "--method", "full")
    told = commands.ok(*arguments, "--json").json
    assert (told["trainable"], told["total"], told["percent"]) == (6_738_415_616,) * 2 + (100,)
    parts = ("weights", "gradients", "optimizer", "training")
    assert told["bytes"] == {
        "float32": dict(zip(parts, (6_738_415_616 * n for n in (4, 4, 8, 16)), strict=True)),
        "float16": dict(zip(parts, (6_738_415_616 * n for n in (2, 2, 4, 8)), strict=True)),
    }
    rows = [" ".join(line.split()) for line in commands.ok(*arguments).out.splitlines()]
    assert rows[-2:] == [
        "float32 26,953.7 MB 26,953.7 MB 53,907.3 MB 107,814.6 MB",
        "float16 13,476.8 MB 13,476.8 MB 26,953.7 MB 53,907.3 MB",
    ]


@pytest.mark.parametrize("methods", [("full:r=8",), ("full", "lora"), ("full", "full")])
def test_full_stands_alone(commands: Commands, methods: tuple[str, ...]) -> None:
    options = [part for method in methods for part in ("--method", method)]
    message = commands.fails("count", "--shape", "gpt2", *options)
    assert message == (
        "tinygrad-peft: --method full: expected alone and without settings, got "
        f"{', '.join(methods)}\n"
    )


def test_memory_is_a_table_with_a_row_for_each_way_of_storing_weights(commands: Commands) -> None:
    out = commands.ok("count", "--shape", "llama-7b", "--method", "lora:r=8").out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "float32 26,970.4 MB 16.8 MB 33.6 MB 27,020.8 MB" in rows
    assert "NF4, rest in float16 3,882.4 MB 16.8 MB 33.6 MB 3,932.7 MB" in rows


def test_several_methods_add_up(commands: Commands) -> None:
    methods = ("--method", "lora:r=8", "--method", "lora:r=4,target_modules=mlp.c_fc")
    told = commands.ok("count", "--shape", "gpt2", *methods, "--json").json
    assert told["trainable"] == 294_912 + 12 * 4 * (768 + 3072)


@pytest.mark.parametrize("place", ["bert", "bert/config.json"])
def test_a_checkpoint_is_counted_without_its_weights(
    small_world: Path, tmp_path: Path, commands: Commands, place: str
) -> None:
    arguments = ("--method", "lora:r=8", "--json")
    whole = commands.ok("count", "--config", small_world / place, *arguments).json
    copytree(small_world / "bert", tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    told = commands.ok("count", "--config", tmp_path / place, *arguments).json
    assert told["trainable"] == whole["trainable"] == 2 * 2 * 8 * (16 + 16)


def test_a_config_of_an_unknown_model_type_is_told_with_its_path(
    tmp_path: Path, commands: Commands
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "bart"}), encoding="utf-8")
    message = commands.fails("count", "--config", tmp_path, "--method", "lora")
    assert message == (
        f"tinygrad-peft: {config}: unknown model_type 'bart', expected one of gpt2, llama, bert; "
        "did you mean 'bert'?\n"
    )


def test_an_unknown_shape_is_told_with_the_nearest(commands: Commands) -> None:
    message = commands.fails("count", "--shape", "lama-7b", "--method", "lora")
    assert "unknown shape 'lama-7b'; did you mean 'llama-7b'" in message


@pytest.mark.parametrize("arguments", [(), ("--shape", "gpt2", "--config", "somewhere")])
def test_one_model_is_counted(commands: Commands, arguments: tuple[str, ...]) -> None:
    message = commands.fails("count", "--method", "lora", *arguments)
    assert message == "tinygrad-peft: give one of --shape and --config\n"


def test_targets_of_another_family_are_told_with_the_nearest(commands: Commands) -> None:
    method = "lora:target_modules=c_attn+q_proj"
    message = commands.fails("count", "--shape", "gpt2", "--method", method)
    assert "'q_proj' matches no module; did you mean 'c_proj'" in message
    assert "'c_attn'" not in message


def test_targets_that_a_method_cannot_adapt_are_refused(commands: Commands) -> None:
    method = "vera:target_modules=wpe+c_attn"
    message = commands.fails("count", "--shape", "gpt2", "--method", method)
    assert "'wpe' names 1 modules" in message
