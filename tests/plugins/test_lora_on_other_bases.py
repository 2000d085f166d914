"""LoRA's options on bases other than Linear: 4-bit layers, and other wrappers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import LLAMA, logits, shake, small
from tinygrad_peft.nn import DenseWeight, Init, Linear, Parameter, times_weight, weight_of
from tinygrad_peft.peft import PeftModel, get_peft_model
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_lora import DoraLinear, LoraConfig, LoraLinear
from tinygrad_peft_qlora import QuantizeConfig
from tinygrad_peft_qlora.layer import QuantizedLinear
from tinygrad_peft_qlora.quantization import quantize

WIDE = replace(LLAMA, hidden_size=64, intermediate_size=128)
OPTIONS = {
    "dora": LoraConfig(r=2, use_dora=True),
    "pissa": LoraConfig(r=2, init_lora_weights="pissa"),
    "olora": LoraConfig(r=2, init_lora_weights="olora"),
    "a bias of B": LoraConfig(r=2, lora_bias=True),
    "tokens": LoraConfig(r=2, trainable_token_indices=[3, 9]),
    "embedding": LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
}


def quantized(seed: int = 0) -> QuantizedLinear:
    weight = np.random.default_rng(seed).normal(size=(4, 64)).astype(np.float32)
    return QuantizedLinear(quantize(weight), Parameter(np.ones(4, np.float32)))


def test_a_4_bit_layer_returns_its_dequantised_weight() -> None:
    base = quantized()
    assert isinstance(base, DenseWeight)
    np.testing.assert_array_equal(weight_of(base), base.dequantized().weight.data)
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    expected = x @ base.dequantized().weight.data.T
    np.testing.assert_allclose(times_weight(base, x), expected, atol=1e-5)


def test_a_lora_on_a_4_bit_layer_returns_the_sum_of_both_weights() -> None:
    base = quantized()
    made = LoraLinear(base, LoraConfig(r=2, init_lora_weights=False), "layer", Init())
    np.testing.assert_allclose(weight_of(made), weight_of(base) + made.delta(), atol=1e-5)


def test_an_adapted_layer_returns_its_updated_weight() -> None:
    made = LoraLinear(Linear(5, 4), LoraConfig(r=2, init_lora_weights=False), "layer", Init())
    merged = made.merge()
    assert merged is not None
    found = weight_of(made)
    np.testing.assert_allclose(found, merged.weight.data, atol=1e-6)


def test_norms_are_computed_for_the_current_base() -> None:
    config = LoraConfig(r=2, use_dora=True)
    made = DoraLinear(QuantizedLinear(quantized(0).weight), config, "layer", Init())
    for seed in (1, 2):
        made.base_layer = QuantizedLinear(quantized(seed).weight)
        expected = np.linalg.norm(quantized(seed).dequantized().weight.data, axis=1)
        np.testing.assert_allclose(made.norms(), expected, rtol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_works_on_a_4_bit_base(option: str, tmp_path: Path) -> None:
    base = logits(get_peft_model(small(WIDE), QuantizeConfig()))
    recipe = [QuantizeConfig(), OPTIONS[option]]
    peft = get_peft_model(small(WIDE), recipe)
    np.testing.assert_allclose(logits(peft), base, atol=5e-6)
    shake(peft)
    expected = logits(peft)
    assert np.abs(expected - base).max() > 1e-2
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(WIDE), tmp_path)
    np.testing.assert_array_equal(logits(loaded), expected)
    np.testing.assert_allclose(logits(peft.merge_and_unload()), expected, atol=1e-5)


def test_dora_uses_the_bias_of_its_base() -> None:
    made = DoraLinear(quantized(), LoraConfig(r=2, use_dora=True), "layer", Init())
    zero = Tensor(np.zeros((2, 64), np.float32))
    np.testing.assert_allclose(made(zero).data, np.ones((2, 4)), atol=1e-6)
