"""Activation functions, a cache-sized block of rows at a time.

Each computes value and derivative in one pass and keeps only the derivative: the backward pass
needs neither the input nor another exponential. Blocks are written to their place in the result or
to one scratch array, since allocating memory for each would cost more than the arithmetic.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array, block_rows, blocks, rows
from tinygrad_peft.ops._result import FusedResult, Needs
from tinygrad_peft.ops.arithmetic import erf_in_place

__all__ = ["gelu", "gelu_tanh", "relu", "silu", "swiglu"]

# From one block of x, writes y and, if given, dy/dx; the scratch is three more blocks.
_Curve: TypeAlias = Callable[[Array, Array, Array | None, Array], None]


def gelu(needs: Needs, x: Array) -> FusedResult:
    """x Φ(x), Φ the normal distribution function: the exact form (Hendrycks and Gimpel 2016).

    d(xΦ) = (Φ + x φ) dx, with φ(x) = e^(-x²/2) / √2π.
    """
    return _blockwise(needs, x, _gelu)


def gelu_tanh(needs: Needs, x: Array) -> FusedResult:
    """½ x (1 + tanh u) with u = √(2/π) (x + 0.044715 x³): the form of GPT-2."""
    return _blockwise(needs, x, _gelu_tanh)


def silu(needs: Needs, x: Array) -> FusedResult:
    """x σ(x), with d(xσ) = σ (1 + x (1 - σ)) dx."""
    return _blockwise(needs, x, _silu)


def relu(needs: Needs, x: Array) -> FusedResult:
    """max(x, 0)."""
    return _blockwise(needs, x, _relu)


def swiglu(needs: Needs, gate: Array, up: Array) -> FusedResult:
    """silu(gate) ⊙ up (Shazeer 2020, "GLU variants improve transformer").

    Keeps silu'(gate) ⊙ up for the gradient of the gate and silu(gate) for the gradient of up.
    """
    need_gate, need_up = needs
    value = np.empty(up.shape, up.dtype)
    d_gate = np.empty(up.shape, up.dtype) if need_gate else None
    d_up = np.empty(up.shape, up.dtype) if need_up else None
    gate2, up2, y = rows(gate), rows(up), rows(value)
    slope = None if d_gate is None else rows(d_gate)
    activated = None if d_up is None else rows(d_up)
    with np.errstate(over="ignore"):
        for block in blocks(*gate2.shape):
            part = None if slope is None else slope[block]
            _silu(gate2[block], y[block], part)
            if activated is not None:
                activated[block] = y[block]
            if part is not None:
                part *= up2[block]
            y[block] *= up2[block]
    return value, lambda g: (
        None if d_gate is None else g * d_gate,
        None if d_up is None else g * d_up,
    )


def _blockwise(needs: Needs, x: Array, curve: _Curve) -> FusedResult:
    """Compute value and derivative of an element-wise function, block by block."""
    (wanted,) = needs
    x2 = rows(x) if x.ndim else x.reshape(1, 1)
    value = np.empty(x2.shape, x.dtype)
    slope = np.empty(x2.shape, x.dtype) if wanted else None
    scratch = np.empty((3, block_rows(*x2.shape), x2.shape[1]), x.dtype)
    with np.errstate(over="ignore"):  # e^(-x) = inf gives σ = 0, as it should
        for block in blocks(*x2.shape):
            part = x2[block]
            curve(
                part, value[block], None if slope is None else slope[block], scratch[:, : len(part)]
            )
    shape = x.shape
    return value.reshape(shape), lambda g: (None if slope is None else g * slope.reshape(shape),)


def _gelu(x: Array, value: Array, slope: Array | None, scratch: Array) -> None:
    np.multiply(x, math.sqrt(0.5), out=value)
    erf_in_place(value, scratch)
    value += 1
    value *= 0.5  # Φ
    if slope is not None:
        np.multiply(x, x, out=slope)
        slope *= -0.5
        np.exp(slope, out=slope)
        slope *= x
        slope *= 1 / math.sqrt(2 * math.pi)
        slope += value
    value *= x


def _gelu_tanh(x: Array, value: Array, slope: Array | None, scratch: Array) -> None:
    # ½ (1 + tanh u) = σ(2u), and one exponential is faster than a hyperbolic tangent.
    c, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
    square = np.multiply(x, x, out=scratch[0])
    np.multiply(square, c * cubic, out=value)
    value += c
    value *= x  # 2u
    _sigmoid(value, out=value)
    if slope is not None:
        square *= 3 * c * cubic
        square += c
        square *= x  # x d(2u)/dx
        _sigmoid_slope(value, square, out=slope)
    value *= x


def _silu(x: Array, value: Array, slope: Array | None, _: Array | None = None) -> None:
    _sigmoid(x, out=value)
    if slope is not None:
        _sigmoid_slope(value, x, out=slope)
    value *= x


def _relu(x: Array, value: Array, slope: Array | None, _: Array) -> None:
    np.maximum(x, 0, out=value)
    if slope is not None:
        np.greater(x, 0, out=slope)


def _sigmoid(x: Array, *, out: Array) -> None:
    """σ(x) = 1 / (1 + e^(-x))."""
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def _sigmoid_slope(sigma: Array, along: Array, *, out: Array) -> None:
    """d(x σ(z))/dx = σ (1 + (1 - σ) x dz/dx), given σ and x dz/dx."""
    np.subtract(1, sigma, out=out)
    out *= along
    out += 1
    out *= sigma
