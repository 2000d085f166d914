"""Loading raises exactly the problems that inspecting reports: both are ends of one walk."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import BERT_CLASSIFIER, LLAMA, Snapshot, small
from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import TinygradPeftError, told
from tinygrad_peft.models.inspection import Report
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import PeftConfig, PeftModel, get_peft_model, inspect_path
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_qlora import QLoraConfig, QuantizeConfig
from tinygrad_peft_vera import VeraConfig

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
HUB = BottleneckAdapterConfig(reads="residual", bottleneck_dim=4)
Break = Callable[[Path], None]


def settings(name: str = CONFIG, /, **values: object) -> Break:
    """Changes settings of a file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(*names: str) -> Break:
    """Removes files."""

    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def content(name: str, data: bytes) -> Break:
    """Replaces what a file holds."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def tensors(name: str = WEIGHTS, **kinds: Callable[[AnyArray], AnyArray | None]) -> Break:
    """Changes the first tensor whose name ends with each key; None drops it."""

    def change(folder: Path) -> None:
        stored: dict[str, AnyArray] = load_file(folder / name)
        for end, make in kinds.items():
            key = next(key for key in sorted(stored) if key.split(".")[-2:][0] == end)
            array = make(stored.pop(key))
            if array is not None:
                stored[key] = array
        save_file(stored, folder / name)

    return change


def renamed(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    save_file({f"x.{name}": array for name, array in stored.items()}, folder / WEIGHTS)


def both(*breaks: Break) -> Break:
    def change(folder: Path) -> None:
        for each in breaks:
            each(folder)

    return change


def nothing(_folder: Path) -> None:
    pass


def none(_array: AnyArray) -> None:
    return None


def wide(array: AnyArray) -> AnyArray:
    return np.zeros((7, *array.shape), array.dtype)


def whole(array: AnyArray) -> AnyArray:
    return np.zeros(array.shape, np.int64)


ONE: Mapping[str, Break] = {
    "nothing": nothing,
    "no recipe": without(RECIPE),
    "no settings": without(CONFIG),
    "no settings and no recipe": without(CONFIG, RECIPE),
    "no weights": without(WEIGHTS),
    "no files": without(CONFIG, RECIPE, WEIGHTS),
    "a pickle": both(without(WEIGHTS), content("adapter_model.bin", b"")),
    "weights of another layout": both(without(WEIGHTS), content("adapters.safetensors", b"")),
    "recipe not JSON": content(RECIPE, b"{"),
    "recipe a list": content(RECIPE, b"[]"),
    "recipe empty": content(RECIPE, b"{}"),
    "format": settings(RECIPE, format=3),
    "steps": settings(RECIPE, steps=["../.."]),
    "a step that is not there": settings(RECIPE, steps=["0-lora"]),
    "base note": settings(RECIPE, base={"model_type": 3}),
    "head note": settings(RECIPE, base={"head": "classification"}),
    "another base": settings(RECIPE, base={"model_type": "gpt2", "hidden_size": 32}),
    "targets note": settings(RECIPE, targets=3),
    "settings not JSON": content(CONFIG, b"nonsense"),
    "settings twice": content(CONFIG, b'{"r": 1, "r": 2}'),
    "settings empty": content(CONFIG, b"{}"),
    "unknown settings": settings(lora_alhpa=3, use_qalora=True),
    "wrong types": settings(r="4", target_modules=[3], lora_dropout=2),
    "no such choice": settings(bias="some"),
    "unknown method": settings(peft_type="LORE"),
    "no name of a method": settings(peft_type=5),
    "unknown targets": settings(target_modules=["q_porj", "v_proj"]),
    "no places": settings(target_modules=["embed_tokens", "norm"]),
    "other rank": settings(r=5),
    "huge rank": settings(r=10**9),
    "broken expression": settings(target_modules="("),
    "weights cut": content(WEIGHTS, b"12345"),
    "weights not safetensors": content(WEIGHTS, b"PK\x03\x04 a zip file, of a kind"),
    "a tensor missing": tensors(lora_A=none),
    "a tensor of another shape": tensors(lora_B=wide),
    "a tensor of integers": tensors(lora_B=whole),
    "three tensors wrong": both(tensors(lora_A=none), tensors(lora_B=wide), tensors(lora_A=whole)),
    "tensors of other names": renamed,
    "settings and weights": both(settings(rank=3), content(WEIGHTS, b"no tensors")),
    "recipe and vocabulary": both(settings(RECIPE, base={"vocab_size": 7}), tensors(lora_A=none)),
}
STEPS: Mapping[str, Break] = {
    "nothing": nothing,
    "both without settings": without(f"0-lora/{CONFIG}", f"1-lora/{CONFIG}"),
    "one without weights": without(f"0-lora/{WEIGHTS}"),
    "one unknown, one broken": both(
        settings(f"0-lora/{CONFIG}", peft_type="LORE"), content(f"1-lora/{WEIGHTS}", b"")
    ),
    "each with a tensor less": both(
        tensors(f"0-lora/{WEIGHTS}", lora_A=none), tensors(f"1-lora/{WEIGHTS}", lora_B=none)
    ),
    "one of another rank, one cut": both(
        settings(f"0-lora/{CONFIG}", r=3), content(f"1-lora/{WEIGHTS}", b"123")
    ),
    "unknown targets in both": both(
        settings(f"0-lora/{CONFIG}", target_modules=["a"]),
        settings(f"1-lora/{CONFIG}", target_modules=["b"]),
    ),
    "a step twice": settings(RECIPE, steps=["0-lora", "0-lora"]),
    "recipe a folder": both(without(RECIPE), lambda folder: (folder / RECIPE).mkdir()),
}
MLX: Mapping[str, Break] = {
    "nothing": nothing,
    "no weights": without("adapters.safetensors"),
    "weights cut": content("adapters.safetensors", b"123"),
    "unknown kind": settings(fine_tune_type="loha"),
    "other rank": settings(lora_parameters={"rank": 3, "scale": 1.0, "keys": ["self_attn.q_proj"]}),
    "no scale": settings(lora_parameters={"rank": 2, "scale": 0.0}),
    "settings empty": content(CONFIG, b"{}"),
}
ADAPTERHUB: Mapping[str, Break] = {
    "nothing": nothing,
    "another kind": settings(config={"architecture": "lora", "r": 8}),
    "another size": settings(hidden_size=99, name=""),
    "no weights": without("adapter.safetensors"),
}
OTHERS: Mapping[str, tuple[PeftConfig, Break]] = {
    "factors": (IA3Config(), settings(feedforward_modules=["k_proj"])),
    "factors of targets": (IA3Config(), nothing),
    "vectors": (VeraConfig(r=4), settings(r=8)),
    "vectors without matrices": (VeraConfig(r=4), settings(save_projection=False)),
    "prefix": (PrefixTuningConfig(prefix_projection=True), nothing),
    "prefix of another model": (PrefixTuningConfig(), settings(token_dim=99)),
    "prefix without its network": (
        PrefixTuningConfig(prefix_projection=True),
        content("reparameterization.safetensors", b"123"),
    ),
    "4 bits and an adapter": (QLoraConfig(r=2), nothing),
    "4 bits of nothing": (
        QLoraConfig(r=2),
        settings(f"0-quantize/{CONFIG}", target_modules=["nowhere"]),
    ),
    "4 bits alone": (QuantizeConfig(), nothing),
    "4 bits alone of nothing": (QuantizeConfig(), settings(target_modules=["nowhere"])),
    "a part of the weight": (LoraConfig(r=2, init_lora_weights="pissa"), nothing),
    "a part of the weight of other rank": (
        LoraConfig(r=2, init_lora_weights="pissa"),
        settings("reparameterization.json", r=3),
    ),
}


def assert_ends_agree(folder: Path, config: TransformerConfig, *, sound: bool) -> None:
    """Loads and inspects, and compares what they say."""
    report = inspect_path(folder, base=config)
    problems = flattened(report)
    model = small(config)
    before = Snapshot.of(model)
    assert report.sound == (not problems)
    if not problems:
        assert sound
        PeftModel.from_pretrained(model, folder)
        return
    with pytest.raises(TinygradPeftError) as caught:
        PeftModel.from_pretrained(model, folder)
    if len(problems) == 1 and problems[0].startswith(str(folder)):
        assert str(caught.value) == problems[0]
    else:
        assert str(caught.value) == f"{folder} cannot be loaded:{told(problems)}"
    before.assert_unchanged(model)


def flattened(report: Report) -> list[str]:
    return [*report.problems, *(p for part in report.parts for p in flattened(part))]


# Notes that only help, and a file of the same adapter in Hugging Face PEFT's own form.
SOUND = {"nothing", "no recipe", "base note", "targets note"}


@pytest.mark.parametrize("name", [name for name in ONE if name != "no files"])
def test_one_step_that_is_broken(name: str, tmp_path: Path) -> None:
    get_peft_model(small(), LORA).save_pretrained(tmp_path)
    ONE[name](tmp_path)
    assert_ends_agree(tmp_path, LLAMA, sound=name in SOUND)


@pytest.mark.parametrize("name", STEPS)
def test_several_steps_that_are_broken(name: str, tmp_path: Path) -> None:
    get_peft_model(small(), [LORA, replace(LORA, r=3)]).save_pretrained(tmp_path)
    STEPS[name](tmp_path)
    assert_ends_agree(tmp_path, LLAMA, sound=name in SOUND)


@pytest.mark.parametrize("name", MLX)
def test_a_broken_folder_of_mlx(name: str, tmp_path: Path) -> None:
    get_peft_model(small(), LORA).save_pretrained(tmp_path, layout="mlx-lm")
    MLX[name](tmp_path)
    assert_ends_agree(tmp_path, LLAMA, sound=name in SOUND)


@pytest.mark.parametrize("name", ADAPTERHUB)
def test_a_broken_folder_of_adapterhub(name: str, tmp_path: Path) -> None:
    get_peft_model(small(), HUB).save_pretrained(tmp_path, layout="AdapterHub")
    ADAPTERHUB[name](tmp_path)
    assert_ends_agree(tmp_path, LLAMA, sound=name in SOUND)


@pytest.mark.parametrize("name", OTHERS)
def test_broken_folders_of_other_methods(name: str, tmp_path: Path) -> None:
    config, change = OTHERS[name]
    get_peft_model(small(), config).save_pretrained(tmp_path)
    change(tmp_path)
    assert_ends_agree(tmp_path, LLAMA, sound=change is nothing)


OTHER_MODELS: Mapping[str, Mapping[str, object]] = {
    "pooling": {"pooling": "mean"},
    "labels": {"label_names": ("c", "b", "a")},
    "heads": {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 2},
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_model_that_is_another(name: str, tmp_path: Path) -> None:
    config = replace(BERT_CLASSIFIER, label_names=("a", "b", "c"))
    get_peft_model(small(config), LoraConfig(modules_to_save=["classifier"])).save_pretrained(
        tmp_path
    )
    other = replace(config, **OTHER_MODELS[name])  # type: ignore[arg-type]
    assert_ends_agree(tmp_path, config, sound=True)
    assert_ends_agree(tmp_path, other, sound=False)


def test_a_step_opened_by_itself_says_what_to_install(tmp_path: Path) -> None:
    get_peft_model(small(), [LORA, LORA]).save_pretrained(tmp_path)
    settings(f"0-lora/{CONFIG}", peft_type="LORE")(tmp_path)
    settings(RECIPE, plugins={"lore": "lore-peft"})(tmp_path)
    for folder in (tmp_path, tmp_path / "0-lora"):
        assert "the distribution 'lore-peft' does" in " ".join(flattened(inspect_path(folder)))
    shutil.rmtree(tmp_path / "1-lora")
    assert_ends_agree(tmp_path / "0-lora", LLAMA, sound=False)
