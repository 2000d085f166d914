"""Layouts of other libraries come from plugins, and the core has only Hugging Face PEFT's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.peft.small import LLAMA, logits, lora_host, plugin, shake, small
from tinygrad_peft.errors import CheckpointError, ConfigError, PluginError
from tinygrad_peft.peft import (
    HUGGING_FACE,
    FolderLayout,
    ForeignFolder,
    ForeignName,
    ForeignRequest,
    ForeignStep,
    Host,
    PeftConfig,
    PeftModel,
    get_peft_model,
    hookimpl,
    hookspecs,
    inspect_path,
)
from tinygrad_peft.peft.storage.layout import known_layouts
from tinygrad_peft_lora import LoraConfig

ELSEWHERE = FolderLayout(
    name="Elsewhere",
    weights="elsewhere.safetensors",
    never_read="elsewhere.npz",
    save_again="with elsewhere.save",
    base_key="base",
    noted=("base",),
    tensor_names=r"elsewhere/.*",
    recognises=lambda settings: "elsewhere" in settings,
    kind_of=lambda settings: str(settings["elsewhere"]),
)


@hookimpl(hookspecs.foreign_layouts)
def foreign_layouts() -> Sequence[FolderLayout]:
    return [ELSEWHERE]


def naming(path: str, name: str) -> ForeignName:
    return ForeignName(f"elsewhere/{path}/{name}", transposed=True)


@hookimpl(hookspecs.read_foreign)
def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
    if folder.layout != ELSEWHERE.name or folder.settings["elsewhere"] != "low rank":
        return None
    return ForeignStep(LoraConfig(r=2), folder.settings, naming)


@hookimpl(hookspecs.write_foreign)
def write_foreign(config: PeftConfig, request: ForeignRequest) -> ForeignStep | None:
    if request.layout != ELSEWHERE.name:
        return None
    return ForeignStep(config, {"elsewhere": "low rank", "base": "org/llama"}, naming)


def host() -> Host:
    made = lora_host()
    made.register(
        plugin(
            foreign_layouts=foreign_layouts, read_foreign=read_foreign, write_foreign=write_foreign
        ),
        "elsewhere",
    )
    return made


def saved(folder: Path) -> PeftModel:
    peft = get_peft_model(small(), LoraConfig(r=2), host=host())
    shake(peft)
    peft.save_pretrained(folder, layout="Elsewhere")
    return peft


def test_without_plugins_there_is_hugging_faces_alone() -> None:
    assert known_layouts(Host()) == (HUGGING_FACE,)
    with pytest.raises(ConfigError, match="layout: expected one of Hugging Face PEFT, mlx-lm, got"):
        get_peft_model(small(), LoraConfig(), host=lora_host()).save_pretrained(
            "nowhere", layout="Elsewhere"
        )


def test_a_layout_from_elsewhere_is_written_read_and_inspected(tmp_path: Path) -> None:
    peft = saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "elsewhere.safetensors",
    }
    loaded = PeftModel.from_pretrained(small(), tmp_path, host=host())
    assert (logits(loaded) == logits(peft)).all()
    report = inspect_path(tmp_path, host())
    assert report.sound, report.problems
    assert (report.facts["format"], report.facts["base"]) == ("Elsewhere", "org/llama")
    assert inspect_path(tmp_path, host(), base=LLAMA).sound


def test_its_kinds_and_files_have_the_librarys_names(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"elsewhere": "high rank"}))
    with pytest.raises(CheckpointError, match="reads 'high rank' in Elsewhere's layout"):
        PeftModel.from_pretrained(small(), tmp_path, host=host())
    (tmp_path / "elsewhere.safetensors").rename(tmp_path / "elsewhere.npz")
    told = "elsewhere.npz is not read: save it as safetensors, with elsewhere.save"
    with pytest.raises(CheckpointError, match=told):
        PeftModel.from_pretrained(small(), tmp_path, host=host())


def test_a_plain_save_removes_its_weights(tmp_path: Path) -> None:
    saved(tmp_path).save_pretrained(tmp_path)
    assert not (tmp_path / "elsewhere.safetensors").exists()


def test_two_plugins_may_give_one_layout_but_not_two_of_one_name() -> None:
    @hookimpl(hookspecs.foreign_layouts)
    def others() -> Sequence[FolderLayout]:
        return [replace(ELSEWHERE, weights="other.safetensors")]

    made = host()
    made.register(plugin(foreign_layouts=foreign_layouts), "again")
    assert known_layouts(made).count(ELSEWHERE) == 1
    made.register(plugin(foreign_layouts=others), "other")
    with pytest.raises(PluginError, match="describe the layout 'Elsewhere' differently"):
        known_layouts(made)
