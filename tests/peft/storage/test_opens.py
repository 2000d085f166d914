"""Each file of an adapter's folder is opened once."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peft.small import LLAMA, lora_host, small
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import (
    AdapterFolder,
    Host,
    PeftConfig,
    PeftModel,
    get_peft_model,
    inspect_path,
)
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
LORA = LoraConfig(r=2)
_watching: list[list[str]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watching:
        _watching[-1].append(str(arguments[0]))


sys.addaudithook(_note)  # one hook for the whole run: Python cannot remove one


def opens(folder: Path, work: Callable[[], object]) -> Counter[str]:
    """The number of opens of each file in a folder, by its path there."""
    _watching.append([])
    try:
        work()
    finally:
        paths = [Path(name) for name in _watching.pop()]
    return Counter(str(p.relative_to(folder)) for p in paths if p.is_relative_to(folder))


def saved(folder: Path, recipe: PeftConfig | list[PeftConfig]) -> Path:
    get_peft_model(small(), recipe, host=Host.installed()).save_pretrained(folder)
    return folder


def test_the_count_sees_every_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert opens(tmp_path, lambda: [(tmp_path / "file").read_bytes() for _ in "ab"]) == {"file": 2}


@pytest.mark.parametrize("base", [None, LLAMA], ids=["alone", "with its base"])
def test_inspecting_one_step_opens_each_file_once(
    base: TransformerConfig | None, tmp_path: Path
) -> None:
    saved(tmp_path, LORA)
    found = opens(tmp_path, lambda: inspect_path(tmp_path, base=base))
    assert found == {RECIPE: 1, CONFIG: 1, WEIGHTS: 1}


def test_loading_one_step_opens_the_weights_once_more_for_their_values(tmp_path: Path) -> None:
    saved(tmp_path, LORA)
    found = opens(tmp_path, lambda: PeftModel.from_pretrained(small(), tmp_path))
    assert found == {RECIPE: 1, CONFIG: 1, WEIGHTS: 2}


def test_of_several_steps_each_is_opened_once_too(tmp_path: Path) -> None:
    saved(tmp_path, [LORA, LORA])
    steps = ("0-lora", "1-lora")
    loaded = opens(tmp_path, lambda: PeftModel.from_pretrained(small(), tmp_path))
    assert loaded == {
        RECIPE: 1,
        **{f"{step}/{CONFIG}": 1 for step in steps},
        **{f"{step}/{WEIGHTS}": 2 for step in steps},
    }
    inspected = opens(tmp_path, lambda: inspect_path(tmp_path))
    assert inspected == dict.fromkeys(loaded, 1)


def test_weights_that_others_are_computed_from_are_opened_once_too(tmp_path: Path) -> None:
    saved(tmp_path, PrefixTuningConfig(prefix_projection=True))
    inspected = opens(tmp_path, lambda: inspect_path(tmp_path))
    assert inspected == {RECIPE: 1, CONFIG: 1, WEIGHTS: 1, "reparameterization.safetensors": 1}


@pytest.mark.parametrize("layout", ["AdapterHub", "mlx-lm"])
def test_a_folder_of_another_library_is_opened_once_too(layout: str, tmp_path: Path) -> None:
    bottleneck = BottleneckAdapterConfig(reads="residual", bottleneck_dim=4)
    config = bottleneck if layout == "AdapterHub" else LORA
    get_peft_model(small(), config).save_pretrained(tmp_path, layout=layout)
    (weights,) = (path.name for path in tmp_path.glob("*.safetensors"))
    assert opens(tmp_path, lambda: inspect_path(tmp_path)) == {CONFIG: 1, weights: 1}
    loaded = opens(tmp_path, lambda: PeftModel.from_pretrained(small(), tmp_path))
    assert loaded == {CONFIG: 1, weights: 2}


def test_a_folder_that_was_read_is_not_opened_again(tmp_path: Path) -> None:
    folder = AdapterFolder.read(saved(tmp_path, LORA), lora_host())
    assert folder.base == LLAMA
    found = opens(tmp_path, lambda: PeftModel.from_pretrained(small(), folder))
    assert found == {WEIGHTS: 1}  # for the values
