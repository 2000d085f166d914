import math

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor


def grad_of(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_is_a_share_of_exponentials(axis: int) -> None:
    x = normal(3, 4, 5)
    expected = np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)

    np.testing.assert_allclose(F.softmax(Tensor(x), axis=axis).data, expected, rtol=1e-13)
    np.testing.assert_allclose(
        F.log_softmax(Tensor(x), axis=axis).data, np.log(expected), rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_of_large_values_is_finite(dtype: type[np.floating]) -> None:
    x = Tensor(np.array([[1e4, -1e4, 1e4], [-1e4, -1e4, -1e4]], dtype))

    np.testing.assert_allclose(F.softmax(x).data, [[0.5, 0, 0.5], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(F.log_softmax(x).data[1], [-math.log(3)] * 3, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-13)])
def test_norms_match_their_formula(dtype: type[np.floating], tolerance: float) -> None:
    x, weight, bias = (normal(*s, seed=i) for i, s in enumerate(((700, 301), (301,), (301,))))
    x = x * 3 + 2
    centred = x - x.mean(axis=1, keepdims=True)
    layer = centred / np.sqrt(x.var(axis=1, keepdims=True) + 0.1) * weight + bias
    rms = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 0.1) * weight
    t, w, b = (Tensor(a.astype(dtype)) for a in (x, weight, bias))

    np.testing.assert_allclose(
        F.layer_norm(t, w, b, 0.1).data, layer, rtol=1e-5, atol=tolerance * 9
    )
    np.testing.assert_allclose(F.rms_norm(t, w, 0.1).data, rms, rtol=1e-5, atol=tolerance * 9)


def test_a_row_far_from_zero_is_normalised_as_one_near_it() -> None:
    x = normal(4, 64).astype(np.float32)
    one = Tensor(np.ones(64, np.float32))
    near, far = (F.layer_norm(Tensor(x + shift), one, None, 1e-5).data for shift in (0, 1000))

    np.testing.assert_allclose(near, far, atol=1e-3)


def test_a_constant_row_becomes_the_bias() -> None:
    x, one, bias = Tensor(np.full((2, 8), 7.0)), Tensor(np.ones(8)), Tensor(np.arange(8.0))

    np.testing.assert_array_equal(F.layer_norm(x, one, bias, 1e-5).data, [np.arange(8.0)] * 2)


def test_the_gradient_of_many_blocks_equals_the_gradient_of_each_row() -> None:
    x, weight, g = normal(700, 301), normal(301, seed=1), normal(700, 301, seed=2)
    whole, w = Tensor(x, requires_grad=True), Tensor(weight, requires_grad=True)
    F.layer_norm(whole, w, None, 1e-5).backward(g)
    assert whole.grad is not None
    total = np.zeros(301)
    for i in range(700):
        row, own = Tensor(x[i], requires_grad=True), Tensor(weight, requires_grad=True)
        F.layer_norm(row, own, None, 1e-5).backward(g[i])
        np.testing.assert_allclose(whole.grad[i], grad_of(row), rtol=1e-9, atol=1e-12)
        assert own.grad is not None
        total += own.grad

    np.testing.assert_allclose(grad_of(w), total, rtol=1e-10, atol=1e-12)
