"""Adapters written by PEFT, against PEFT's outputs: every method on every family."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinygrad_peft.errors import PeftError
from tinygrad_peft.models import load_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftModel, config_from_dict
from tinygrad_peft.tensor import no_grad

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FOLDERS = sorted(file.parent for file in GOLDEN.glob(f"*/{WEIGHTS}"))
COMPUTED = {"input_ids", "attention_mask", "labels", "logits", "loss"}  # the rest are gradients


@pytest.fixture(params=FOLDERS, ids=lambda folder: str(folder.name))
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return found


def base(folder: Path, dtype: type[np.floating] = np.float32) -> Transformer:
    return load_model(GOLDEN / settings(folder)["base_model_name_or_path"], dtype=dtype)


def expected(folder: Path) -> dict[str, Any]:
    with np.load(folder / "expected.npz") as stored:
        return dict(stored)


def assert_logits(model: Transformer | PeftModel, folder: Path) -> None:
    wanted = expected(folder)
    mask = wanted["attention_mask"]
    with no_grad():
        found = model(wanted["input_ids"], mask).data
    apart = np.abs(found - wanted["logits"])
    if apart.ndim == 3:  # the logits of a prompt's tokens come first
        apart = apart[np.pad(mask != 0, ((0, 0), (apart.shape[1] - mask.shape[1], 0)), "edge")]
    assert apart.max() < 1e-4


def test_every_method_has_golden_files_for_every_family() -> None:
    there: dict[str, set[str]] = {}
    for folder in FOLDERS:
        families = there.setdefault(settings(folder)["peft_type"], set())
        families.add(base(folder).config.model_type)
    virtual = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
    assert there.keys() >= {"LORA", "LN_TUNING", "VERA", *virtual}
    assert all(families == {"gpt2", "llama", "bert"} for families in there.values())


def test_the_golden_files_are_small() -> None:
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()) < 1_000_000


def test_logits_match_peft(folder: Path) -> None:
    assert_logits(PeftModel.from_pretrained(base(folder), folder), folder)


def test_merged_logits_match_peft(folder: Path) -> None:
    peft = PeftModel.from_pretrained(base(folder), folder)
    (config,) = peft.recipe
    if config.not_mergeable:
        with pytest.raises(PeftError, match=config.not_mergeable):
            peft.merge_and_unload()
        return
    assert_logits(peft.merge_and_unload(), folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_and_gradients_match_peft(folder: Path, dtype: type[np.floating]) -> None:
    wanted = expected(folder)
    peft = PeftModel.from_pretrained(base(folder, dtype), folder, is_trainable=True)
    loss = peft.loss(wanted["input_ids"], wanted["labels"], wanted["attention_mask"])
    loss.backward()
    assert loss.item() == pytest.approx(float(wanted["loss"]), rel=1e-4)
    trained = peft.record.trained_parameters(0)
    assert trained.keys() == wanted.keys() - COMPUTED
    for name, parameter in trained.items():
        assert parameter.grad is not None
        bound = 1e-4 * max(float(np.abs(wanted[name]).max()), 1e-3)
        np.testing.assert_allclose(parameter.grad, wanted[name], atol=bound, rtol=0, err_msg=name)


def test_a_folder_that_was_read_is_written_again(folder: Path, tmp_path: Path) -> None:
    peft = PeftModel.from_pretrained(base(folder), folder)
    peft.save_pretrained(tmp_path)
    (tmp_path / "recipe.json").unlink()
    assert_logits(PeftModel.from_pretrained(base(folder), tmp_path), folder)
    values, written = settings(folder), settings(tmp_path)
    assert written.keys() <= values.keys()
    (config,) = peft.recipe
    if config.flattened() != config:
        assert written["r"] == 2 * values["r"]
        return
    heads = ("classifier", "score")  # PEFT names these for every classifier, for some twice
    named = dict.fromkeys(values.get("modules_to_save") or ())
    saved = [name for name in named if name not in heads or name in str(peft.recipe)]
    assert config_from_dict(type(config), written) == config_from_dict(
        type(config), {**values, "modules_to_save": saved}
    )
    stored, before = load_file(tmp_path / WEIGHTS), load_file(folder / WEIGHTS)
    assert stored.keys() <= before.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(array, before[name])
    more = [".base_layer.weight", ".modules_to_save.", ".original_module."]
    assert all(any(part in name for part in more) for name in before.keys() - stored.keys())
