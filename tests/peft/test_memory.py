from dataclasses import replace

import numpy as np
import pytest

from tests.peft.small import FAMILIES, IDS, lora_host, small
from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Affine, Module
from tinygrad_peft.nn.optim import AdamW
from tinygrad_peft.peft import (
    Memory,
    PeftModel,
    capture_seams,
    count_recipe,
    estimate_memory,
    get_peft_model,
)
from tinygrad_peft.reference import pack_4bit, quantize_nf4
from tinygrad_peft_lora import LoraConfig

# Wide enough that the matrices are whole blocks of 256 scales of 64 weights.
WIDE = {
    name: replace(
        config,
        hidden_size=128,
        intermediate_size=256,
        num_key_value_heads=config.num_attention_heads,
        head_dim=128 // config.num_attention_heads,
    )
    for name, config in FAMILIES.items()
}


def estimated(family: str) -> Memory:
    config = WIDE[family]
    return estimate_memory(config, *count_recipe(config, LoraConfig(r=2), lora_host()))


def adapted(family: str) -> PeftModel:
    return get_peft_model(small(WIDE[family]), LoraConfig(r=2), host=lora_host())


def arrays(model: Module) -> list[Array]:
    return [parameter.data for parameter in dict.fromkeys(model.parameters())]


def nf4_bytes(weight: Array) -> int:
    """What 4-bit codes, 8-bit scales, and the scales' own scales really take."""
    codes, absmax = quantize_nf4(weight)
    outer = np.zeros(-(-absmax.size // 256), np.float32)
    return pack_4bit(codes).nbytes + absmax.astype(np.uint8).nbytes + outer.nbytes


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_floats_take_what_the_arrays_of_a_real_model_take(family: str) -> None:
    real = arrays(adapted(family))
    assert estimated(family).weights["float32"] == sum(a.nbytes for a in real)
    assert estimated(family).weights["float16"] == sum(a.astype(np.float16).nbytes for a in real)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_nf4_take_what_their_codes_and_scales_and_the_rest_take(family: str) -> None:
    model = small(WIDE[family])
    layers = [
        s.module
        for s in capture_seams(model)
        if isinstance(s.module, Affine) and s.path not in ("lm_head", "classifier")
    ]
    matrices = {id(p): p.data for m in layers for n, p in m.own_parameters() if n == "weight"}
    codes = sum(nf4_bytes(matrix) for matrix in matrices.values())
    quantized = sum(matrix.size for matrix in matrices.values())
    rest = sum(a.size for a in arrays(adapted(family))) - quantized
    assert quantized > 0
    assert estimated(family).weights["nf4"] == codes + 4 * rest
    assert estimated(family).weights["nf4_float16"] == codes + 2 * rest


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_moments_take_what_a_real_steps_take(family: str) -> None:
    model = adapted(family)
    optimizer = AdamW(model.trainable_parameters(), lr=1e-3)
    logits = model(IDS)
    logits.backward(np.ones_like(logits.data))
    gradients = [p.grad for p in model.trainable_parameters() if p.grad is not None]
    moments = [array for arrays in optimizer.moments.values() for array in arrays]
    assert estimated(family).gradients == sum(gradient.nbytes for gradient in gradients)
    assert estimated(family).optimizer == sum(moment.nbytes for moment in moments)


def test_training_is_all_of_it_together() -> None:
    memory = Memory({"float32": 100, "float16": 50}, gradients=3, optimizer=6)
    assert memory.training == {"float32": 109, "float16": 59}


def test_a_weight_in_nf4_takes_just_over_four_bits() -> None:
    config = WIDE["llama"]
    memory = estimate_memory(config, trainable=0, total=2**30)
    quantized = 3 * (4 * 128 * 128 + 3 * 128 * 256)
    bits = 8 * (memory.weights["nf4"] - 4 * (2**30 - quantized)) / quantized
    assert bits == pytest.approx(4.127, abs=5e-4)


def test_formats_come_from_plugins() -> None:
    config = WIDE["llama"]
    assert set(estimate_memory(config, 0, 2**20, lora_host()).weights) == {"float32", "float16"}
    assert set(estimate_memory(config, 0, 2**20).weights) >= {"nf4", "nf4_float16"}
