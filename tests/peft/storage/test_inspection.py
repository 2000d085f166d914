"""Reports on adapters, from headers alone."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import LLAMA, ShiftConfig, lora_host, plugin, shift, small
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models import save_model
from tinygrad_peft.models.inspection import Report
from tinygrad_peft.nn import Module, TransformerConfig
from tinygrad_peft.peft import (
    FolderLayout,
    Host,
    PeftConfig,
    Site,
    get_peft_model,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.peft.storage.inspection import inspect_path
from tinygrad_peft_adapter.adapterhub import ADAPTERHUB
from tinygrad_peft_lora import LoraConfig

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 3})
PLACE = "model.layers.{}.self_attn.{}"


@hookimpl(hookspecs.foreign_layouts)
def foreign_layouts() -> Sequence[FolderLayout]:
    return [ADAPTERHUB]


def host() -> Host:
    made = lora_host()
    made.register(plugin(ShiftConfig, adapt=shift), "shift")
    made.register(plugin(foreign_layouts=foreign_layouts), "another")
    return made


def saved(folder: Path, *steps: PeftConfig) -> Path:
    get_peft_model(small(), list(steps) or LORA, host=host()).save_pretrained(folder)
    return folder


def from_elsewhere(folder: Path, **values: object) -> Path:
    """A folder as PEFT writes it, which does not tell its base."""
    (saved(folder) / RECIPE).unlink()
    config = json.loads((folder / CONFIG).read_text()) | values
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def inspect(path: Path, base: TransformerConfig | None = None) -> Report:
    return inspect_path(path, host(), base=base)


def problems(path: Path, base: TransformerConfig | None = None) -> list[str]:
    return list(inspect(path, base).problems)


# ---------- what it is ----------


def test_an_adapter_of_one_step_is_described(tmp_path: Path) -> None:
    report = inspect(saved(tmp_path))
    assert report.sound, report.problems
    assert report.kind == "adapter"
    facts = report.facts
    assert facts["method"] == "lora"
    assert facts["settings"] == {"r": 2, "rank_pattern": {"v_proj": 3}}
    assert facts["targets"] == ("q_proj", "v_proj")
    assert (facts["modules"], facts["ranks"]) == (6, [2, 3])
    assert facts["task_type"] == "CAUSAL_LM"
    base = facts["base"]
    assert isinstance(base, dict)
    assert (base["family"], base["num_hidden_layers"]) == ("llama", 3)
    assert report.tensors is not None
    assert report.tensors.parameters == 3 * (2 * (16 + 16) + 3 * (16 + 8))
    assert dict(report.tensors.dtypes) == {"F32": report.tensors.parameters}


def test_a_folder_from_elsewhere_is_described_by_its_own_files(tmp_path: Path) -> None:
    report = inspect(
        from_elsewhere(tmp_path, base_model_name_or_path="org/base", peft_version="0.21.2")
    )
    assert report.sound, report.problems
    assert report.facts["base_model_name_or_path"] == "org/base"
    assert report.facts["peft_version"] == "0.21.2"
    assert (report.facts["modules"], report.facts["ranks"]) == (6, [2, 3])
    assert "base" not in report.facts


def test_the_steps_of_a_recipe_are_its_parts(tmp_path: Path) -> None:
    report = inspect(saved(tmp_path, LORA, ShiftConfig(target_modules=["o_proj"])))
    assert report.sound
    assert report.kind == "recipe"
    assert report.facts["steps"] == 2
    assert [part.facts["method"] for part in report.parts] == ["lora", "shift"]
    assert [part.facts["modules"] for part in report.parts] == [6, 3]


def test_several_adapters_are_parts_of_their_folder(tmp_path: Path) -> None:
    peft = get_peft_model(small(), LORA, host=host())
    peft.add_adapter("other", [LORA, LORA])
    peft.save_pretrained(tmp_path)
    report = inspect(tmp_path)
    assert report.sound
    assert (report.kind, [part.kind for part in report.parts]) == ("folder", ["adapter", "recipe"])
    peft.save_pretrained(tmp_path / "only", adapters=["other"])
    assert inspect(tmp_path / "only").kind == "recipe"


def test_what_a_broken_save_has_left_is_not_an_adapter(tmp_path: Path) -> None:
    get_peft_model(small(), LORA, host=host()).save_pretrained(tmp_path)
    for left in (".saving-1", ".saving-2/new"):
        shutil.copytree(tmp_path, tmp_path / left, ignore=shutil.ignore_patterns(".*"))
    report = inspect_path(tmp_path, host())
    assert report.kind == "adapter"
    assert report.sound


def test_a_model_with_its_adapter_is_two_parts(tmp_path: Path) -> None:
    save_model(small(), tmp_path)
    assert inspect(saved(tmp_path)).kind == "folder"
    assert [part.kind for part in inspect(tmp_path).parts] == ["model", "adapter"]


def test_a_file_of_settings_stands_for_its_folder(tmp_path: Path) -> None:
    saved(tmp_path)
    for name in (CONFIG, RECIPE):
        assert inspect(tmp_path / name).facts["method"] == "lora"
    assert inspect(tmp_path / WEIGHTS).kind == "tensors"


def test_installed_plugins_are_asked_by_default(tmp_path: Path) -> None:
    assert inspect_path(saved(tmp_path)).sound


MLX: dict[str, object] = {
    "fine_tune_type": "lora",
    "num_layers": 3,
    "lora_parameters": {"rank": 2, "scale": 1.5, "keys": ["self_attn.q_proj"]},
    "model": "org/base",
}


def of_mlx(folder: Path) -> Path:
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"])
    get_peft_model(small(), config, host=host()).save_pretrained(folder, layout="mlx-lm")
    (folder / CONFIG).write_text(json.dumps(MLX))
    return folder


def test_another_layout_is_recognised_by_its_content(tmp_path: Path) -> None:
    for base in (None, LLAMA):
        report = inspect(of_mlx(tmp_path), base)
        assert report.sound, report.problems
        assert report.tensors is not None
        facts = report.facts
        assert (facts["format"], facts["method"]) == ("mlx-lm", "lora")
        assert facts["settings"] == {"r": 2, "lora_alpha": 3.0}
        assert (facts["targets"], facts["model"]) == (("self_attn.q_proj",), "org/base")


def test_problems_in_another_layout_are_reported(tmp_path: Path) -> None:
    weights = of_mlx(tmp_path) / "adapters.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.self_attn.q_proj.lora_b"
    del tensors[name]
    save_file(tensors, weights)
    assert problems(tmp_path, LLAMA) == [f"missing: {name} (2, 16)"]
    weights.rename(tmp_path / WEIGHTS)
    assert problems(tmp_path) == [
        f"{weights} does not exist; {WEIGHTS} belongs to Hugging Face PEFT's layout"
    ]


def test_a_layout_that_no_plugin_reads_is_reported(tmp_path: Path) -> None:
    folder = from_elsewhere(tmp_path)
    (folder / WEIGHTS).rename(folder / "adapter.safetensors")
    values = {"config": {"reduction_factor": 16}, "model_type": "gpt2", "name": "task"}
    (folder / CONFIG).write_text(json.dumps(values))
    report = inspect(folder)
    assert report.facts == {
        "format": "AdapterHub",
        "method": None,
        "name": "task",
        "model_type": "gpt2",
    }
    (told,) = report.problems
    assert told.endswith("no installed plugin reads 'bottleneck' in AdapterHub's layout")
    (folder / "adapter.safetensors").unlink()
    (folder / "pytorch_adapter.bin").write_bytes(b"")
    assert "is a pickle, which can run any code" in problems(folder)[0]


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "Hugging Face PEFT"),
        ("prompt_embeddings", "Hugging Face PEFT"),
        ("transformer.h.0.adapters.task.adapter_up.weight", "AdapterHub"),
        ("model.layers.0.self_attn.q_proj.lora_a", "mlx-lm"),
    ],
)
def test_a_file_of_tensors_by_itself_is_known_by_their_names(
    name: str, like: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    save_file({name: np.zeros((2, 3), np.float32)}, file)
    assert inspect(file).facts["like"] == f"an adapter of {like}"


@dataclass(frozen=True, kw_only=True)
class RankedConfig(ShiftConfig):
    """Settings from elsewhere with names that other methods give to functions."""

    peft_type: ClassVar[str] = "RANKED"
    rank: int = 3
    gguf_problems: str = "none"


def test_settings_called_as_a_methods_functions_are_settings(tmp_path: Path) -> None:
    def adapt(config: PeftConfig, site: Site) -> Module | None:
        return shift(config, site) if isinstance(config, RankedConfig) else None

    made = lora_host()
    made.register(plugin(RankedConfig, adapt=adapt), "ranked")
    get_peft_model(small(), RankedConfig(rank=5), host=made).save_pretrained(tmp_path)
    for base in (None, LLAMA):
        report = inspect_path(tmp_path, made, base=base)
        assert report.sound, report.problems
        assert report.facts["settings"] == {"rank": 5}
        assert not {"ranks", "llama.cpp"} & report.facts.keys()


# ---------- what is wrong with it ----------


def test_tensors_that_do_not_fit_the_base_are_all_reported(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "base_model.model." + PLACE.format(0, "q_proj.lora_A.weight")
    tensors[name.replace("q_proj", "q_porj")] = tensors.pop(name)
    other = name.replace(".0.", ".1.")
    tensors[other] = np.zeros((5, 16), np.float32)
    third = name.replace(".0.", ".2.")
    tensors[third] = tensors[third].astype(np.int64)
    save_file(tensors, tmp_path / WEIGHTS)
    assert problems(tmp_path) == [
        f"missing: {name} (2, 16); did you mean {name.replace('q_proj', 'q_porj')!r}?",
        f"unexpected: {name.replace('q_proj', 'q_porj')} (2, 16)",
        f"wrong shape: {other} is (5, 16), expected (2, 16)",
        f"wrong dtype: {third} is I64, expected one of F64, F32, F16, BF16",
    ]


def test_without_its_base_names_and_ranks_are_checked(tmp_path: Path) -> None:
    folder = from_elsewhere(tmp_path, r=4, target_modules=["q_proj", "v_porj"], rank_pattern={})
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model." + PLACE.format(2, "v_proj.lora_B.weight")]
    save_file(tensors, folder / WEIGHTS)
    found = problems(folder)
    assert found[0] == "target_modules: no tensor belongs to 'v_porj'; did you mean 'v_proj'?"
    half = PLACE.format(2, "v_proj.lora_A.weight")
    assert f"{half}: {half.replace('lora_A', 'lora_B')} is missing" in found
    name = PLACE.format(0, "q_proj.lora_B.weight")
    assert f"{name}: expected rank 4, got shape (16, 2)" in found


def test_a_model_that_is_named_takes_the_place_of_the_base(tmp_path: Path) -> None:
    folder = from_elsewhere(tmp_path, target_modules=["q_proj", "w_proj"])
    found = problems(folder, LLAMA)
    assert "'w_proj' matches no module" in found[0]
    assert found[1].startswith("unexpected: base_model.model.model.layers.0.self_attn.v_proj.lora")
    wide = TransformerConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        model_type="llama",
    )
    (first, *_) = problems(saved(tmp_path / "own"), wide)
    assert "was made for another model: num_attention_heads: expected 4, got 2" in first


def test_a_step_that_is_broken_is_named(tmp_path: Path) -> None:
    saved(tmp_path, LORA, ShiftConfig(target_modules=["o_proj"]))
    (tmp_path / "0-lora" / WEIGHTS).unlink()
    shutil.copy(tmp_path / "0-lora" / CONFIG, tmp_path / "1-shift" / CONFIG)
    report = inspect(tmp_path)
    assert not report.sound
    assert report.parts[0].problems == [f"{tmp_path / '0-lora' / WEIGHTS} does not exist"]
    assert report.parts[1].problems[0].startswith("1-shift: missing: ")


def test_wrong_settings_are_reported_with_the_weights(tmp_path: Path) -> None:
    folder = from_elsewhere(tmp_path, lora_alhpa=3)
    (folder / WEIGHTS).write_bytes(b"no tensors")
    second, first = problems(folder)
    assert "lora_alhpa = 3; did you mean 'lora_alpha'" in first
    assert "is truncated or not a safetensors file" in second


def test_tensors_are_reported_without_the_methods_plugin(tmp_path: Path) -> None:
    report = inspect(from_elsewhere(tmp_path, peft_type="BOFT"))
    assert report.facts["method"] == "boft"
    assert report.tensors is not None
    assert "no installed plugin provides the method 'boft'" in report.problems[0]


def test_a_broken_recipe_is_reported(tmp_path: Path) -> None:
    (saved(tmp_path) / RECIPE).write_text('{"format": 1, "steps": ["../.."]}')
    assert problems(tmp_path) == [
        f"{tmp_path / RECIPE}: steps: expected a list of folder names, got ['../..']"
    ]


def test_weights_without_settings_are_an_adapter_that_lacks_them(tmp_path: Path) -> None:
    (from_elsewhere(tmp_path) / CONFIG).unlink()
    (found,) = problems(tmp_path)
    assert f"expected {RECIPE} or {CONFIG}, got neither; it holds weights in Hugging Face" in found


# ---------- what is neither ----------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none", "none does not exist, or is not a regular file"),
        ("notes.txt", "expected a folder, or a .safetensors or .gguf file"),
        ("pytorch_model.bin", "is a pickle, which can run any code"),
        ("empty", "empty holds neither a model nor an adapter (it is empty)"),
        ("notes", "notes holds neither a model nor an adapter (it holds a.txt, b.txt)"),
        ("pickles", "neither a model nor an adapter: optimizer.pt can run any code, and is never"),
    ],
)
def test_a_path_without_a_model_or_an_adapter_is_an_error(
    tmp_path: Path, name: str, told: str
) -> None:
    for folder in ("empty", "notes", "pickles"):
        (tmp_path / folder).mkdir()
    for file in ("notes.txt", "pytorch_model.bin", "notes/a.txt", "notes/b.txt"):
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "pickles" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        inspect(tmp_path / name)
    assert told in str(caught.value)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_residual_start_is_sound_without_recipe_json(start: str, tmp_path: Path) -> None:
    """Its weights for other programs have twice the rank of its settings for training."""
    peft = get_peft_model(small(), LoraConfig(r=2, init_lora_weights=start))
    peft.save_pretrained(tmp_path)
    (tmp_path / RECIPE).unlink()
    assert problems(tmp_path) == []
    assert problems(tmp_path, LLAMA) == []
