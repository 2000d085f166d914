"""A linear layer whose weight is stored at 4 bits (Dettmers et al. 2023, arXiv 2305.14314, eq. 5).

    y = x Ŵᵀ + b,    dx = g Ŵ

Ŵ is the weight that the 4-bit codes stand for. It never exists as a whole: a few rows at a time are
unpacked into scratch, used, and overwritten by the next. It is frozen, so dŴ is not computed.
"""

import numpy as np

from tinygrad_peft.arrays import Array, rows
from tinygrad_peft.errors import ShapeError
from tinygrad_peft.nn import Linear, Module, Parameter
from tinygrad_peft.ops import FusedResult, Needs
from tinygrad_peft.tensor import Tensor, apply_fused
from tinygrad_peft_qlora.quantization import QuantizedWeight, dequantize, row_blocks

__all__ = ["QuantizedLinear", "quantized_linear"]


class QuantizedLinear(Module):
    """x Ŵᵀ + b with Ŵ (out, in) at 4 bits: (..., in_features) -> (..., out_features).

    The bias (out,) is shared with the original layer.
    """

    def __init__(self, weight: QuantizedWeight, bias: Parameter | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias
        self.packed_elements = weight.size

    def __call__(self, x: Tensor) -> Tensor:
        return apply_fused(quantized_linear, x, self.bias, weight=self.weight)

    def dense_weight(self) -> Array:
        """Return Ŵ (out, in), a new array."""
        return dequantize(self.weight)

    def dequantized(self) -> Linear:
        """Return the plain layer with the same output."""
        bias = None if self.bias is None else Parameter(self.bias.data.copy())
        return Linear.of(Parameter(self.dense_weight()), bias)


def quantized_linear(
    needs: Needs, x: Array, bias: Array | None = None, *, weight: QuantizedWeight
) -> FusedResult:
    """y = x Ŵᵀ + b, for x (..., in), Ŵ (out, in) at 4 bits, b (out,).

    dx = g Ŵ, db = Σ g. Only the codes are kept.
    """
    out, columns = weight.shape
    if not x.ndim or x.shape[-1] != columns:
        raise ShapeError(f"quantized_linear: expected x (..., {columns}), got shape {x.shape}")
    need_x, need_bias = needs
    x_shape, x2 = x.shape, rows(x)
    y = np.empty((len(x2), out), np.result_type(x, weight.dtype))
    for at, w in row_blocks(weight):
        np.matmul(x2, w.T, out=y[:, at])  # (rows, some of out)
    if bias is not None:
        y += bias

    def pullback(g: Array) -> tuple[Array | None, ...]:
        g2 = rows(g)
        return (
            _times_weight(g2, weight).reshape(x_shape) if need_x else None,
            g2.sum(axis=0) if need_bias else None,
        )

    return y.reshape(*x_shape[:-1], out), pullback


def _times_weight(g: Array, weight: QuantizedWeight) -> Array:
    """g Ŵ, summed over blocks of Ŵ's rows: (rows, out) -> (rows, in)."""
    total = np.zeros((len(g), weight.shape[1]), np.result_type(g, weight.dtype))
    part = np.empty_like(total)
    for at, w in row_blocks(weight):
        total += np.matmul(g[:, at], w, out=part)
    return total
