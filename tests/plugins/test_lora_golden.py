"""LoRA adapters that PEFT wrote, against what PEFT computed from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinygrad_peft.models import load_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftModel, config_from_dict
from tinygrad_peft.tensor import no_grad
from tinygrad_peft_lora import LoraConfig

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(GOLDEN.glob("lora-*"))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(params=FOLDERS, ids=lambda folder: str(folder.name))
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def base(folder: Path, dtype: type[np.floating] = np.float32) -> Transformer:
    name = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    return load_model(GOLDEN / name, dtype=dtype)


def expected(folder: Path) -> dict[str, Any]:
    with np.load(folder / "expected.npz") as stored:
        return dict(stored)


def assert_logits(model: Transformer | PeftModel, folder: Path) -> None:
    wanted = expected(folder)
    mask = wanted["attention_mask"]
    with no_grad():
        apart = np.abs(model(wanted["input_ids"], mask).data - wanted["logits"])
    assert (apart if apart.ndim == 2 else apart[mask != 0]).max() < 1e-4


def test_there_are_a_dozen_of_every_family() -> None:
    assert len(FOLDERS) >= 12
    assert {base(folder).config.model_type for folder in FOLDERS} == {"gpt2", "llama", "bert"}


def test_the_logits_are_pefts(folder: Path) -> None:
    assert_logits(PeftModel.from_pretrained(base(folder), folder), folder)


def test_the_merged_models_logits_are_pefts(folder: Path) -> None:
    merged = PeftModel.from_pretrained(base(folder), folder).merge_and_unload()
    assert_logits(merged, folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_and_the_gradients_are_pefts(folder: Path, dtype: type[np.floating]) -> None:
    wanted = expected(folder)
    peft = PeftModel.from_pretrained(base(folder, dtype), folder, is_trainable=True)
    loss = peft.loss(wanted["input_ids"], wanted["labels"], wanted["attention_mask"])
    loss.backward()
    assert loss.item() == pytest.approx(float(wanted["loss"]), rel=1e-4)
    trained = peft.record.trained_parameters(0)
    assert trained.keys() == {name for name in wanted if name.startswith("base_model.")}
    for name, parameter in trained.items():
        assert parameter.grad is not None
        bound = 1e-4 * max(float(np.abs(wanted[name]).max()), 1e-3)
        np.testing.assert_allclose(parameter.grad, wanted[name], atol=bound, rtol=0, err_msg=name)


def test_what_is_read_is_written_again(folder: Path, tmp_path: Path) -> None:
    peft = PeftModel.from_pretrained(base(folder), folder)
    peft.save_pretrained(tmp_path)
    (tmp_path / "recipe.json").unlink()
    assert_logits(PeftModel.from_pretrained(base(folder), tmp_path), folder)
    values = json.loads((folder / CONFIG).read_text())
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written.keys() <= values.keys()
    (config,) = peft.recipe
    if config.flattened() != config:
        assert written["r"] == 2 * values["r"]
        return
    heads = ("classifier", "score")  # which PEFT names for every classifier
    saved = [n for n in values["modules_to_save"] or () if n not in heads or n in str(peft.recipe)]
    assert config_from_dict(LoraConfig, written) == config_from_dict(
        LoraConfig, {**values, "modules_to_save": saved}
    )
    stored, before = load_file(tmp_path / WEIGHTS), load_file(folder / WEIGHTS)
    assert stored.keys() <= before.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(array, before[name])
    more = [".base_layer.weight", ".modules_to_save.", ".original_module."]
    assert all(any(part in name for part in more) for name in before.keys() - stored.keys())
