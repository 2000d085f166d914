from collections.abc import Mapping
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
    count_model,
    count_recipe,
    estimate_full_memory,
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


def estimated(family: str) -> Mapping[str, Memory]:
    config = WIDE[family]
    return estimate_memory(config, *count_recipe(config, LoraConfig(r=2), lora_host()))


def adapted(family: str) -> PeftModel:
    return get_peft_model(small(WIDE[family]), LoraConfig(r=2), host=lora_host())


def arrays(model: Module) -> list[Array]:
    return [parameter.data for parameter in dict.fromkeys(model.parameters())]


def nf4_bytes(weight: Array) -> int:
    """The bytes of 4-bit codes, 8-bit scales, and the scales' own scales."""
    codes, absmax = quantize_nf4(weight)
    outer = np.zeros(-(-absmax.size // 256), np.float32)
    return pack_4bit(codes).nbytes + absmax.astype(np.uint8).nbytes + outer.nbytes


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_floats_take_what_the_arrays_of_a_real_model_take(family: str) -> None:
    model = adapted(family)
    trained = sum(p.data.nbytes for p in model.trainable_parameters())
    frozen = sum(p.size for p in dict.fromkeys(model.parameters()) if not p.requires_grad)
    assert estimated(family)["float32"].weights == sum(a.nbytes for a in arrays(model))
    assert estimated(family)["float16"].weights == 2 * frozen + trained


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
    whole = adapted(family)
    trained = sum(p.size for p in whole.trainable_parameters())
    rest = sum(a.size for a in arrays(whole)) - quantized - trained
    assert quantized > 0
    assert estimated(family)["nf4"].weights == codes + 4 * rest + 4 * trained
    assert estimated(family)["nf4_float16"].weights == codes + 2 * rest + 4 * trained


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_moments_take_what_a_real_steps_take(family: str) -> None:
    model = adapted(family)
    optimizer = AdamW(model.trainable_parameters(), lr=1e-3)
    logits = model(IDS)
    logits.backward(np.ones_like(logits.data))
    gradients = [p.grad for p in model.trainable_parameters() if p.grad is not None]
    moments = [array for arrays in optimizer.moments.values() for array in arrays]
    for memory in estimated(family).values():
        assert memory.gradients == sum(gradient.nbytes for gradient in gradients)
        assert memory.optimizer == sum(moment.nbytes for moment in moments)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_training_takes_what_a_real_step_of_all_parameters_takes(family: str) -> None:
    model = small(WIDE[family])
    parameters = list(dict.fromkeys(model.parameters()))
    for parameter in parameters:
        parameter.requires_grad = True
    optimizer = AdamW(parameters, lr=1e-3)
    logits = model(IDS)
    logits.backward(np.ones_like(logits.data))
    optimizer.step()
    moments = [array for arrays in optimizer.moments.values() for array in arrays]
    total = count_model(WIDE[family])
    memory = estimate_full_memory(total)
    assert memory["float32"] == Memory(
        sum(p.data.nbytes for p in parameters),
        sum(p.grad.nbytes for p in parameters if p.grad is not None),
        sum(moment.nbytes for moment in moments),
    )
    assert memory["float16"] == Memory(2 * total, 2 * total, 4 * total)


def test_training_is_the_sum_of_all_parts() -> None:
    assert Memory(100, gradients=3, optimizer=6).training == 109


def test_a_weight_in_nf4_takes_just_over_four_bits() -> None:
    config = WIDE["llama"]
    memory = estimate_memory(config, trainable=0, total=2**30)["nf4"]
    quantized = 3 * (4 * 128 * 128 + 3 * 128 * 256)
    bits = 8 * (memory.weights - 4 * (2**30 - quantized)) / quantized
    assert bits == pytest.approx(4.127, abs=5e-4)


def test_formats_come_from_plugins() -> None:
    config = WIDE["llama"]
    assert set(estimate_memory(config, 0, 2**20, lora_host())) == {"float32", "float16"}
    assert set(estimate_memory(config, 0, 2**20)) >= {"nf4", "nf4_float16"}
