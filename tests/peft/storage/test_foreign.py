"""Layouts recognised, refused and removed, whatever the method and the other library."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.peft.small import Snapshot, lora_host, plugin, small
from tinygrad_peft.errors import CheckpointError, ConfigError, PluginError
from tinygrad_peft.peft import (
    ForeignFolder,
    ForeignStep,
    PeftModel,
    get_peft_model,
    hookimpl,
    hookspecs,
)
from tinygrad_peft_lora import LoraConfig

CONFIG = "adapter_config.json"
LORA = LoraConfig(r=2)


def saved(folder: Path, layout: str = "mlx-lm") -> PeftModel:
    peft = get_peft_model(small(), LORA)
    peft.save_pretrained(folder, layout=layout)
    return peft


def refused(folder: Path, *parts: str) -> None:
    model = small()
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError) as caught:
        PeftModel.from_pretrained(model, folder)
    before.assert_unchanged(model)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("layout", [None, 3, ["mlx-lm"]])
def test_a_layout_that_is_not_a_text_is_refused(layout: object, tmp_path: Path) -> None:
    wanted: Any = layout  # as code that is not checked may give it
    with pytest.raises(ConfigError, match="expected one of Hugging Face PEFT, AdapterHub, mlx-lm"):
        get_peft_model(small(), LORA).save_pretrained(tmp_path / "new", layout=wanted)
    assert not (tmp_path / "new").exists()


def test_an_unknown_layout_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    layout = "AdaptrHub"
    with pytest.raises(ConfigError) as caught:
        get_peft_model(small(), LORA).save_pretrained(tmp_path / "new", layout=layout)
    assert str(caught.value) == (
        "layout: expected one of Hugging Face PEFT, AdapterHub, mlx-lm, got 'AdaptrHub'; "
        "did you mean 'AdapterHub'?"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("recipe", [LORA, [LORA, LORA]], ids=["one step", "two steps"])
def test_files_of_another_layout_are_removed_from_the_folder(
    recipe: LoraConfig | list[LoraConfig], tmp_path: Path
) -> None:
    get_peft_model(small(), recipe).save_pretrained(tmp_path)
    saved(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {CONFIG, "adapters.safetensors"}
    PeftModel.from_pretrained(small(), tmp_path)


@pytest.mark.parametrize("recipe", [LORA, [LORA, LORA]], ids=["one step", "two steps"])
def test_a_plain_save_removes_its_files_from_the_folder(
    recipe: LoraConfig | list[LoraConfig], tmp_path: Path
) -> None:
    saved(tmp_path / "again")
    for folder in (tmp_path / "again", tmp_path / "new"):
        get_peft_model(small(), recipe).save_pretrained(folder)
    again, new = (
        {path.relative_to(folder) for path in folder.rglob("*")}
        for folder in (tmp_path / "again", tmp_path / "new")
    )
    assert again == new
    PeftModel.from_pretrained(small(), tmp_path / "again")


def test_a_step_in_another_layout_is_in_pefts_when_its_recipe_is_saved_again(
    tmp_path: Path,
) -> None:
    get_peft_model(small(), [LORA, LORA]).save_pretrained(tmp_path)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    step = tmp_path / "0-lora"
    (step / "adapter_model.safetensors").unlink()
    saved(step)
    PeftModel.from_pretrained(small(), tmp_path).save_pretrained(tmp_path)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before


def test_of_several_adapters_all_are_written_or_none(tmp_path: Path) -> None:
    peft = get_peft_model(small(), LORA)
    peft.add_adapter("other", LoraConfig(r=3))
    peft.add_adapter("biased", LoraConfig(lora_bias=True))
    with pytest.raises(ConfigError, match="mlx-lm's layout cannot hold 'biased'"):
        peft.save_pretrained(tmp_path, layout="mlx-lm")
    assert not list(tmp_path.iterdir())
    peft.save_pretrained(tmp_path, adapters=["default", "other"], layout="mlx-lm")
    loaded = PeftModel.from_pretrained(small(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    assert [
        recipe[0].r for recipe in loaded.adapters.values() if isinstance(recipe[0], LoraConfig)
    ] == [2, 3]


def test_an_adapter_that_is_read_can_be_trained(tmp_path: Path) -> None:
    saved(tmp_path)
    peft = PeftModel.from_pretrained(small(), tmp_path, is_trainable=True)
    assert len(peft.trainable_parameters()) == 2 * 2 * 3


def test_an_adapter_that_no_plugin_reads_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    values = {"config": {"architecture": "lora", "r": 8}, "model_type": "llama", "name": "task"}
    (tmp_path / CONFIG).write_text(json.dumps(values))
    (tmp_path / "adapters.safetensors").rename(tmp_path / "adapter.safetensors")
    refused(tmp_path, "no installed plugin reads 'lora' in AdapterHub's layout")


def test_weights_named_as_in_another_layout_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "adapters.safetensors").rename(tmp_path / "adapter_model.safetensors")
    refused(
        tmp_path,
        "adapters.safetensors does not exist; "
        "adapter_model.safetensors belongs to Hugging Face PEFT's layout",
    )


def test_two_plugins_that_read_one_folder_are_an_error(tmp_path: Path) -> None:
    @hookimpl(hookspecs.read_foreign)
    def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
        return ForeignStep(LORA, folder.settings, lambda _path, _name: pytest.fail("not asked"))

    saved(tmp_path)
    host = lora_host()
    host.register(plugin(read_foreign=read_foreign), "another")
    with pytest.raises(PluginError, match="expected one answer, got 2, from another and lora"):
        PeftModel.from_pretrained(small(), tmp_path, host=host)


BOTH: tuple[str, ...] = ("mlx-lm", "Hugging Face PEFT")


@pytest.mark.parametrize("layout", BOTH)
def test_a_folder_that_cannot_be_made_is_an_error(layout: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="below cannot be written: Not a directory"):
        saved(tmp_path / "file" / "below", layout)


@pytest.mark.parametrize("layout", BOTH)
def test_a_folder_in_a_files_place_is_an_error_that_names_it(layout: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(CheckpointError, match=f"cannot be written: {CONFIG} is a folder"):
        saved(tmp_path, layout)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_error(layout: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be written: Permission denied"):
        saved(tmp_path, layout)


def test_a_folder_in_the_place_of_another_layouts_weights_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "adapters.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"written: adapters.safetensors is a folder"):
        saved(tmp_path, "Hugging Face PEFT")
