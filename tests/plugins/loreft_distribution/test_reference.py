"""The intervention beside plain NumPy, with gradients that are derived by hand."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pytest

from tinygrad_peft import Tensor
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import Init
from tinygrad_peft.tensor import apply
from tinygrad_peft_loreft import Intervention, LoreftConfig
from tinygrad_peft_loreft.layer import orthonormal_rows

Activation: TypeAlias = Literal["linear", "relu", "gelu", "silu", "tanh"]
RANK, WIDTH = 3, 7


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def normal_cdf(x: Array) -> Array:
    return np.asarray([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x.flat]).reshape(x.shape)


# Each function and its derivative.
FUNCTIONS: Mapping[Activation, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "linear": (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.asarray(x > 0, x.dtype)),
    "gelu": (
        lambda x: x * normal_cdf(x),
        lambda x: normal_cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    "silu": (
        lambda x: x * sigmoid(x),
        lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    ),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
}


def gram_schmidt(v: Array) -> Array:
    """rᵢ = uᵢ / ‖uᵢ‖ with uᵢ = vᵢ - Σ_{j<i} (rⱼ · vᵢ) rⱼ: V (r, d) to R (r, d)."""
    r = np.zeros_like(v)
    for i, row in enumerate(v):
        u = row - r[:i].T @ (r[:i] @ row)
        r[i] = u / np.linalg.norm(u)
    return r


def gram_schmidt_gradient(v: Array, r: Array, dr: Array) -> Array:
    """The last row first: duᵢ = (drᵢ - (rᵢ · drᵢ) rᵢ) / ‖uᵢ‖, dvᵢ = duᵢ - Σ_{j<i} (rⱼ · duᵢ) rⱼ,

    and each rⱼ before it gets -(rⱼ · vᵢ) duᵢ - (rⱼ · duᵢ) vᵢ.
    """
    dr, dv = dr.copy(), np.zeros_like(v)
    for i in reversed(range(len(v))):
        before, row = r[:i], v[i]
        size = np.linalg.norm(row - before.T @ (before @ row))
        du = (dr[i] - (r[i] @ dr[i]) * r[i]) / size
        dv[i] = du - before.T @ (before @ du)
        dr[:i] -= np.outer(before @ row, du) + np.outer(before @ du, row)
    return dv


@dataclass(frozen=True)
class Reference:
    """Φ(h) = h + Rᵀ (f(W h + b) - R h) for states h (n, d)."""

    v: Array  # (r, d)
    w: Array  # (r, d)
    b: Array  # (r,)
    act_fn: Activation

    def __call__(self, h: Array) -> Array:
        r, (f, _) = gram_schmidt(self.v), FUNCTIONS[self.act_fn]
        return np.asarray(h + (f(h @ self.w.T + self.b) - h @ r.T) @ r)

    def gradients(self, h: Array, g: Array) -> tuple[Array, Array, Array, Array]:
        """dh, dV, dW and db for g, the gradient of Φ(h) (n, d)."""
        r, (f, slope) = gram_schmidt(self.v), FUNCTIONS[self.act_fn]
        z = h @ self.w.T + self.b  # (n, r)
        u = f(z) - h @ r.T
        e = g @ r.T
        a = slope(z) * e
        dr = u.T @ g - e.T @ h
        dh = g + a @ self.w - e @ r
        return dh, gram_schmidt_gradient(self.v, r, dr), a.T @ h, a.sum(axis=0)


def intervention(act_fn: Activation = "linear") -> Intervention:
    """Weights far from where they start, in float64."""
    config = LoreftConfig(low_rank_dimension=RANK, act_fn=act_fn)
    made = Intervention(config, WIDTH, Init(3, np.float64))
    rng = np.random.default_rng(4)
    for parameter in made.parameters():
        parameter.data = parameter.data + rng.normal(0, 0.5, parameter.shape)
    return made


@pytest.mark.parametrize("act_fn", FUNCTIONS)
def test_values_and_gradients_are_those_derived_by_hand(act_fn: Activation) -> None:
    made, rng = intervention(act_fn), np.random.default_rng(5)
    h = Tensor(rng.standard_normal((6, WIDTH)), requires_grad=True)
    source = made.learned_source
    assert source.bias is not None
    weights = (made.rotate_layer, source.weight, source.bias)
    v, w, b = (parameter.data for parameter in weights)
    reference = Reference(v, w, b, act_fn)
    y, g = made(h), rng.standard_normal((6, WIDTH))
    np.testing.assert_allclose(y.data, reference(h.data), rtol=1e-12, atol=1e-12)
    y.backward(g)
    for tensor, expected in zip((h, *weights), reference.gradients(h.data, g), strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("act_fn", FUNCTIONS)
def test_gradients_agree_with_differences(act_fn: Activation) -> None:
    made = intervention(act_fn)
    h = Tensor(np.random.default_rng(6).standard_normal((2, 5, WIDTH)), requires_grad=True)
    assert check_gradients(lambda *_: made(h), [h, *made.parameters()]) < 1e-7


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 4), (5, 40)])
def test_the_gradient_of_orthonormal_rows_agrees_with_differences(shape: tuple[int, int]) -> None:
    v = Tensor(np.random.default_rng(7).standard_normal(shape), requires_grad=True)
    r = apply(orthonormal_rows, v).data
    np.testing.assert_allclose(r, gram_schmidt(v.data), atol=1e-12)
    np.testing.assert_allclose(r @ r.T, np.eye(len(r)), atol=1e-12)
    assert check_gradients(lambda v: apply(orthonormal_rows, v), [v]) < 1e-6


def test_orthonormal_rows_stay_as_they_are() -> None:
    r = gram_schmidt(np.random.default_rng(8).standard_normal((4, 9)))
    np.testing.assert_allclose(apply(orthonormal_rows, Tensor(r)).data, r, atol=1e-14)


def test_the_state_is_replaced_within_the_span_of_the_rows_and_nowhere_else() -> None:
    made, h = intervention(), np.random.default_rng(9).standard_normal((4, WIDTH))
    r, y = made.rotation.data, made(Tensor(h)).data
    source = made.learned_source(Tensor(h)).data
    np.testing.assert_allclose(y @ r.T, source, atol=1e-12)
    outside = np.eye(WIDTH) - r.T @ r
    np.testing.assert_allclose(y @ outside, h @ outside, atol=1e-12)


@pytest.mark.parametrize("row", [0.0, 2.0])
def test_dependent_rows_are_refused(row: float) -> None:
    made = intervention()
    made.rotate_layer.data[1] = row * made.rotate_layer.data[0]
    message = r"rotate_layer \(3, 7\): expected linearly independent rows"
    with pytest.raises(PeftError, match=message):
        made(Tensor(np.ones((1, WIDTH))))
