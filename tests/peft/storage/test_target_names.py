"""Targets that a config leaves to others are in its files by name, as PEFT writes them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import FAMILIES, LLAMA, logits, lora_host, shake, small
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.peft import PeftModel, get_peft_model
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_vera import VeraConfig

CONFIG, RECIPE = "adapter_config.json", "recipe.json"
ALL = LoraConfig(r=2, target_modules="all-linear", exclude_modules=r".*\.mlp\..*")


def saved(config: LoraConfig, folder: Path, family: str = "llama") -> PeftModel:
    peft = get_peft_model(small(FAMILIES[family]), config, host=lora_host())
    shake(peft)
    peft.save_pretrained(folder)
    return peft


def load(folder: Path, family: str = "llama") -> PeftModel:
    return PeftModel.from_pretrained(small(FAMILIES[family]), folder, host=lora_host())


def written(folder: Path) -> list[str]:
    names: list[str] = json.loads((folder / CONFIG).read_text())["target_modules"]
    return names


@pytest.mark.parametrize(
    ("family", "names"),
    [("gpt2", ["c_attn"]), ("llama", ["q_proj", "v_proj"]), ("bert", ["query", "value"])],
)
def test_the_usual_targets_are_written_by_name(
    family: str, names: list[str], tmp_path: Path
) -> None:
    peft = saved(LoraConfig(r=2), tmp_path, family)
    assert written(tmp_path) == names
    assert load(tmp_path, family).recipe == peft.recipe == (LoraConfig(r=2),)


def test_all_linear_layers_are_written_by_path_and_what_is_excluded_is_not(tmp_path: Path) -> None:
    peft = saved(ALL, tmp_path)
    names = [f"{n}_proj" for n in "koqv"]
    layers = range(LLAMA.num_hidden_layers)
    assert written(tmp_path) == [f"model.layers.{i}.self_attn.{n}" for i in layers for n in names]
    assert load(tmp_path).recipe == peft.recipe == (ALL,)


@pytest.mark.parametrize("excluded", [["down_proj"], r".*\.down_proj"])
@pytest.mark.parametrize("given", [None, ["q_proj", "v_proj", "down_proj"], r".*\.[qv]_proj"])
def test_excluded_modules_are_not_written_where_peft_has_no_exclusions(
    given: str | list[str] | None, excluded: str | list[str], tmp_path: Path
) -> None:
    config = VeraConfig(r=2, target_modules=given, exclude_modules=excluded)
    get_peft_model(small(), config).save_pretrained(tmp_path)
    layers = range(LLAMA.num_hidden_layers)
    assert written(tmp_path) == [
        f"model.layers.{i}.self_attn.{n}_proj" for i in layers for n in "qv"
    ]
    assert "exclude_modules" not in json.loads((tmp_path / CONFIG).read_text())
    assert PeftModel.from_pretrained(small(), tmp_path).recipe == (config,)
    (tmp_path / RECIPE).unlink()
    (without,) = PeftModel.from_pretrained(small(), tmp_path).recipe
    assert without == replace(config, target_modules=written(tmp_path), exclude_modules=None)


def test_given_targets_come_back_only_if_their_names_are_unchanged(tmp_path: Path) -> None:
    peft = saved(ALL, tmp_path)
    (tmp_path / RECIPE).rename(tmp_path / "kept.json")
    assert load(tmp_path).recipe == (replace(ALL, target_modules=written(tmp_path)),)
    np.testing.assert_array_equal(logits(load(tmp_path)), logits(peft))
    (tmp_path / "kept.json").rename(tmp_path / RECIPE)
    values = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(values | {"target_modules": r".*_proj"}))
    assert load(tmp_path).recipe == (replace(ALL, target_modules=r".*_proj"),)


def with_note(note: object, folder: Path) -> Path:
    saved(LoraConfig(r=2), folder)
    recipe = json.loads((folder / RECIPE).read_text())
    (folder / RECIPE).write_text(json.dumps(recipe | {"targets": note}))
    return folder


@pytest.mark.parametrize(
    "note",
    [
        {".": {"given": None, "names": ["q_proj"]}},
        {".": {"given": None, "names": ["q_proj", "v_proj"], "excluded": "("}},
    ],
)
def test_a_note_that_does_not_fit_the_settings_is_ignored(note: object, tmp_path: Path) -> None:
    peft = load(with_note(note, tmp_path))
    assert peft.recipe == (LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),)


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ([], "Expected `object`, got `array`"),
        ({".": 1}, "Expected `object`, got `int`"),
        ({".": {"given": [1], "names": ["q_proj", "v_proj"]}}, "Expected `str`, got `int`"),
    ],
)
def test_a_note_of_another_type_is_an_error(note: object, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"recipe\.json: targets: {expected}"):
        load(with_note(note, tmp_path))


def test_targets_that_other_settings_name_as_given_are_written_as_given(tmp_path: Path) -> None:
    config = IA3Config(target_modules="all-linear", feedforward_modules=["down_proj"])
    get_peft_model(small(), config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == "all-linear"
    assert PeftModel.from_pretrained(small(), tmp_path).recipe == (config,)


def test_targets_that_are_given_by_name_are_written_as_they_are(tmp_path: Path) -> None:
    saved(LoraConfig(r=2, target_modules=["v_proj", "q_proj"]), tmp_path)
    assert written(tmp_path) == ["v_proj", "q_proj"]
    assert json.loads((tmp_path / RECIPE).read_text())["targets"] == {}
