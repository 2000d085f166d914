"""The framework and the LoRA plugin against the reference, which shares no code with them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Init, Linear
from tinygrad_peft.nn import functional as F
from tinygrad_peft.reference import (
    ACTIVATIONS,
    LoRALinear,
    PrefixTuning,
    attention,
    attention_backward,
    layer_norm,
    layer_norm_backward,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_lora import LoraConfig, LoraLinear

Dtype = type[np.floating[Any]]
TOLERANCE: dict[Dtype, float] = {np.float32: 1e-5, np.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def assert_close(found: Array | None, expected: Array, dtype: Dtype) -> None:
    """Equal relative to the largest value."""
    assert found is not None
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()


def trained(*arrays: Array, dtype: Dtype) -> list[Tensor]:
    return [Tensor(array.astype(dtype), requires_grad=True) for array in arrays]


@DTYPES
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])
@pytest.mark.parametrize(
    "config", [LoraConfig(r=2, lora_alpha=3), LoraConfig(r=2, use_rslora=True)]
)
def test_the_lora_plugin_is_the_references_lora(
    rng: np.random.Generator, dtype: Dtype, biased: bool, shape: tuple[int, ...], config: LoraConfig
) -> None:
    plugin = LoraLinear(
        Linear(5, 4, bias=biased, init=Init(0, dtype)), config, "layer", Init(1, dtype)
    )
    base = plugin.base_layer
    assert isinstance(base, Linear)
    for parameter in plugin.parameters():
        parameter.data = rng.standard_normal(parameter.shape).astype(dtype)
    oracle = LoRALinear(base.weight.data, None if base.bias is None else base.bias.data, 2)
    oracle.lora.A, oracle.lora.B = plugin.lora_A.weight.data, plugin.lora_B.weight.data
    oracle.lora.scaling = plugin.scaling
    x, g = rng.standard_normal(shape), rng.standard_normal((*shape[:-1], 4)).astype(dtype)
    (given,) = trained(x, dtype=dtype)
    y = plugin(given)
    y.backward(g)
    assert_close(y.data, oracle.forward(given.data), dtype)
    assert_close(given.grad, oracle.backward(g), dtype)
    assert_close(plugin.lora_A.weight.grad, oracle.lora.A_grad, dtype)
    assert_close(plugin.lora_B.weight.grad, oracle.lora.B_grad, dtype)
    merged = plugin.merge()
    assert merged is not None
    assert_close(merged.weight.data, oracle.merge()[0], dtype)


@DTYPES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_is_the_references(
    rng: np.random.Generator, dtype: Dtype, causal: bool, key_heads: int
) -> None:
    q, g = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((2, 5, 4, 3))
    k, v = rng.standard_normal((2, 5, key_heads, 3)), rng.standard_normal((2, 5, key_heads, 3))
    tensors = trained(q, k, v, dtype=dtype)
    out = F.attention(*tensors, causal=causal)
    out.backward(g.astype(dtype))
    expected, p = attention(q, k, v, np.tri(5, dtype=bool) if causal else None)
    assert_close(out.data, expected, dtype)
    for tensor, grad in zip(tensors, attention_backward(g, q, k, v, p), strict=True):
        assert_close(tensor.grad, grad, dtype)


@DTYPES
@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_a_prefix_is_the_references(
    rng: np.random.Generator, dtype: Dtype, causal: bool
) -> None:
    tuning = PrefixTuning(1, 2, 3, prefix_length=2)
    tuning.prefix = rng.standard_normal(tuning.prefix.shape)
    q, g = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((2, 5, 4, 3))
    k, v = rng.standard_normal((2, 5, 2, 3)), rng.standard_normal((2, 5, 2, 3))
    tensors = trained(q, k, v, *tuning.get_prefix(0), dtype=dtype)
    tq, tk, tv, keys, values = tensors
    out = F.attention(tq, tk, tv, causal=causal, prefix=(keys, values))
    out.backward(g.astype(dtype))
    expected = tuning.forward(0, q, k, v, np.tri(5, dtype=bool) if causal else None)
    assert_close(out.data, expected, dtype)
    grads = tuning.backward(0, g)
    for tensor, grad in zip(tensors, (*grads, *tuning.prefix_grad[0]), strict=True):
        assert_close(tensor.grad, grad, dtype)


@DTYPES
def test_layer_norm_is_the_references(rng: np.random.Generator, dtype: Dtype) -> None:
    x, g = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 5))
    weight, bias = rng.standard_normal(5), rng.standard_normal(5)
    tx, tw, tb = trained(x, weight, bias, dtype=dtype)
    y = F.layer_norm(tx, tw, tb, 1e-5)
    y.backward(g.astype(dtype))
    assert_close(y.data, layer_norm(x, weight, bias), dtype)
    for tensor, grad in zip((tx, tw, tb), layer_norm_backward(g, x, weight), strict=True):
        assert_close(tensor.grad, grad, dtype)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": F.gelu_tanh,
    "silu": F.silu,
    "tanh": Tensor.tanh,
}


@DTYPES
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_references(rng: np.random.Generator, dtype: Dtype, name: str) -> None:
    x, g = 3 * rng.standard_normal((4, 50)), rng.standard_normal((4, 50))
    (given,) = trained(x, dtype=dtype)
    y = FUNCTIONS[name](given)
    y.backward(g.astype(dtype))
    assert_close(y.data, ACTIVATIONS[name].value(x), dtype)
    assert_close(given.grad, g * ACTIVATIONS[name].slope(x), dtype)
