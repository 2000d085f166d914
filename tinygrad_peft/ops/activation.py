"""Activation functions, a cache-sized block of rows at a time.

Each computes value and derivative in one pass, and keeps the derivative only: the input is not
needed again, and neither is an exponential.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array, blocks, rows
from tinygrad_peft.ops._result import FusedResult, Needs
from tinygrad_peft.ops.arithmetic import erf_values

__all__ = ["gelu", "gelu_tanh", "relu", "silu", "swiglu"]

# From one block of x to (y, dy/dx); dy/dx is not looked at where no gradient is needed.
_Curve: TypeAlias = Callable[[Array, bool], tuple[Array, Array | None]]


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

    Keeps silu'(gate) ⊙ up and silu(gate), each only where the other side's gradient is asked for.
    """
    need_gate, need_up = needs
    value = np.empty(up.shape, up.dtype)
    d_gate = np.empty(up.shape, up.dtype) if need_gate else None
    d_up = np.empty(up.shape, up.dtype) if need_up else None
    value2, gate2, up2 = rows(value), rows(gate), rows(up)
    for block in blocks(*gate2.shape):
        activated, slope = _silu(gate2[block], need_gate)
        np.multiply(activated, up2[block], out=value2[block])
        if d_gate is not None and slope is not None:
            np.multiply(slope, up2[block], out=rows(d_gate)[block])
        if d_up is not None:
            rows(d_up)[block] = activated
    return value, lambda g: (
        None if d_gate is None else g * d_gate,
        None if d_up is None else g * d_up,
    )


def _blockwise(needs: Needs, x: Array, curve: _Curve) -> FusedResult:
    """Value and derivative of an element-wise function, block by block."""
    (wanted,) = needs
    x2 = rows(x) if x.ndim else x.reshape(1, 1)
    value = np.empty_like(x2)
    slope = np.empty_like(x2) if wanted else None
    for block in blocks(*x2.shape):
        value[block], block_slope = curve(x2[block], wanted)
        if slope is not None:
            slope[block] = block_slope
    shape = x.shape
    return value.reshape(shape), lambda g: (None if slope is None else g * slope.reshape(shape),)


def _gelu(x: Array, wanted: bool) -> tuple[Array, Array | None]:  # noqa: FBT001 - a _Curve
    phi = erf_values(x * x.dtype.type(math.sqrt(0.5)))
    phi += 1
    phi *= 0.5
    value = x * phi
    if not wanted:
        return value, None
    slope = x * x
    slope *= -0.5
    np.exp(slope, out=slope)
    slope *= x
    slope *= 1 / math.sqrt(2 * math.pi)
    slope += phi
    return value, slope


def _gelu_tanh(x: Array, wanted: bool) -> tuple[Array, Array | None]:  # noqa: FBT001 - a _Curve
    c, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = square * (c * cubic)
    t += c
    t *= x
    np.tanh(t, out=t)  # tanh u
    half = t + 1
    half *= 0.5
    value = x * half
    if not wanted:
        return value, None
    # dy/dx = ½ (1 + t) + ½ x (1 - t²) du/dx,  du/dx = c (1 + 3 · 0.044715 x²)
    square *= 3 * cubic * c / 2
    square += c / 2
    square *= x
    t *= t
    np.subtract(1, t, out=t)
    t *= square
    t += half
    return value, t


def _silu(x: Array, wanted: bool) -> tuple[Array, Array | None]:  # noqa: FBT001 - a _Curve
    with np.errstate(over="ignore"):  # e^(-x) = inf gives sigma = 0, as it should
        sigma = np.negative(x)
        np.exp(sigma, out=sigma)
    sigma += 1
    np.reciprocal(sigma, out=sigma)
    value = x * sigma
    if not wanted:
        return value, None
    slope = value * (1 - sigma)
    slope += sigma
    return value, slope


def _relu(x: Array, wanted: bool) -> tuple[Array, Array | None]:  # noqa: FBT001 - a _Curve
    return np.maximum(x, x.dtype.type(0)), (x > 0).astype(x.dtype) if wanted else None
