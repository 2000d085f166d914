"""Adapters that hold NaN or infinity."""

from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import LLAMA, lora_host, shake, small
from tinygrad_peft.errors import CheckpointError, NonFiniteWarning
from tinygrad_peft.peft import PeftModel, get_peft_model
from tinygrad_peft_lora import LoraConfig

NAME = "model.layers.1.self_attn.v_proj.lora_B.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    peft = get_peft_model(small(LLAMA), LoraConfig(r=2), host=lora_host())
    shake(peft)
    peft.record.named_parameters(0)[NAME].data[0, 1] = np.nan
    peft.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_with_nan_is_refused_by_the_tensors_name(folder: Path) -> None:
    model = small(LLAMA)
    expected = rf"{folder}: expected finite weights, got: base_model\.model\.{NAME}: 1 NaN of "
    with pytest.raises(CheckpointError, match=expected):
        PeftModel.from_pretrained(model, folder, host=lora_host())
    assert not model.adapted
    peft = get_peft_model(model, LoraConfig(r=2), host=lora_host())
    with pytest.raises(CheckpointError, match=expected):
        peft.load_adapter(folder, "other")
    assert list(peft.adapters) == ["default"]


def test_an_adapter_with_nan_loads_with_a_warning_if_allowed(folder: Path) -> None:
    with pytest.warns(NonFiniteWarning, match="1 NaN of "):
        peft = PeftModel.from_pretrained(
            small(LLAMA), folder, host=lora_host(), allow_nonfinite=True
        )
    assert np.isnan(peft.record.named_parameters(0)[NAME].data[0, 1])
