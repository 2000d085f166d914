"""Layer normalisation (Ba et al. 2016, arXiv 1607.06450), which adapters may have before them.

    y = w ⊙ n + b,        n = (x - mean x) / √(var x + ε)

    x (..., d)    w (d,)    b (d,)        mean and variance over the last axis

With g (..., d) the gradient of y and u = g ⊙ w:

    dw = Σ g ⊙ n          (d,)
    db = Σ g              (d,)
    dx = (u - mean u - n mean(u ⊙ n)) / √(var x + ε)
"""

import numpy as np

from tinygrad_peft.reference._basics import Array, check_shape, rows

__all__ = ["layer_norm", "layer_norm_backward"]


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """x (..., d), weight (d,), bias (d,) -> (..., d)."""
    check_shape("weight", weight, x.shape[-1:])
    check_shape("bias", bias, x.shape[-1:])
    # y = w ⊙ n + b
    return weight * _normalised(x, eps)[0] + bias


def layer_norm_backward(
    grad_output: Array, x: Array, weight: Array, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """(dx, dw, db)."""
    n, deviation = _normalised(x, eps)
    # u = g ⊙ w
    u = grad_output * weight
    # dx = (u - mean u - n mean(u ⊙ n)) / √(var x + ε)
    dx = (u - _mean(u) - n * _mean(u * n)) / deviation
    # dw = Σ g ⊙ n,  db = Σ g
    return dx, rows(grad_output * n).sum(axis=0), rows(grad_output).sum(axis=0)


def _normalised(x: Array, eps: float) -> tuple[Array, Array]:
    """(n, √(var x + ε))."""
    centred = x - _mean(x)
    deviation = np.sqrt(_mean(centred**2) + eps)
    return centred / deviation, deviation


def _mean(x: Array) -> Array:
    mean: Array = x.mean(axis=-1, keepdims=True)
    return mean
