import math
from collections.abc import Callable

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor

REFERENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "gelu": (F.gelu, lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
    "gelu_tanh": (
        F.gelu_tanh,
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "silu": (F.silu, lambda x: x / (1 + math.exp(-x))),
    "relu": (F.relu, lambda x: x if x > 0 else 0.0),
}


def grad_of(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("name", REFERENCES)
def test_values_match_the_formula(name: str, dtype: type[np.floating], tolerance: float) -> None:
    function, reference = REFERENCES[name]
    x = np.linspace(-12, 12, 4_001).astype(dtype)
    expected = np.array([reference(float(v)) for v in x])

    np.testing.assert_allclose(function(Tensor(x)).data, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", REFERENCES)
def test_far_from_zero_values_and_slopes_match_relu(name: str, dtype: type[np.floating]) -> None:
    x = Tensor(np.array([-1e4, -1000.0, -100.0, 100.0, 1000.0, 1e4], dtype), requires_grad=True)
    y = REFERENCES[name][0](x)
    y.backward(np.ones(6))

    np.testing.assert_allclose(y.data, np.maximum(x.data, 0), atol=1e-6)
    np.testing.assert_allclose(grad_of(x), [0, 0, 0, 1, 1, 1], atol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_an_array_of_many_blocks_matches_its_rows(name: str) -> None:
    function = REFERENCES[name][0]
    x = np.random.default_rng(0).standard_normal((700, 301)).astype(np.float32)
    whole = Tensor(x, requires_grad=True)
    value = function(whole)
    value.backward(np.ones_like(x))
    assert whole.grad is not None

    for i in (0, 216, 217, 218, 699):  # 217 rows are a block
        row = Tensor(x[i].copy(), requires_grad=True)
        alone = function(row)
        alone.backward(np.ones(301))
        np.testing.assert_allclose(value.data[i], alone.data, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(whole.grad[i], grad_of(row), rtol=1e-5, atol=1e-6)


def test_swiglu_is_silu_of_the_gate_times_the_other() -> None:
    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((400, 300)), rng.standard_normal((400, 300))

    np.testing.assert_allclose(
        F.swiglu(Tensor(gate), Tensor(up)).data, gate / (1 + np.exp(-gate)) * up, rtol=1e-12
    )
