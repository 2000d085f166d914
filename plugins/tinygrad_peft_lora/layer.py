"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1, eq. 3).

    y = W₀ x + ΔW x = W₀ x + s B A x,        s = α / r

    W₀ (out, in)  the frozen weight
    A  (r, in)    starts Kaiming-uniform, U(±1/√in)
    B  (out, r)   starts at zero, so that ΔW = B A does, and training begins at the base model

With g the gradient of y:  dB = s g (A x)ᵀ,  dA = s Bᵀ g xᵀ,  dx = W₀ᵀ g + s Aᵀ Bᵀ g.
Merged, the layer is the plain W₀ + s B A: no cost at inference.
"""

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, rows
from tinygrad_peft.nn import Affine, Dropout, Init, Linear, Module, Parameter
from tinygrad_peft.nn import functional as F
from tinygrad_peft.ops import FusedResult, Needs
from tinygrad_peft.tensor import Tensor, apply_fused
from tinygrad_peft_lora.config import LoraConfig

__all__ = ["LoraLinear", "lora_linear"]


class LoraLinear(Module):
    """base(x) + s B A dropout(x) on any affine layer: (..., in_features) -> (..., out_features)."""

    base_layer: Affine
    lora_A: Linear  # noqa: N815 - the paper's A
    lora_B: Linear  # noqa: N815 - the paper's B

    def __init__(self, base: Affine, config: LoraConfig, path: str, init: Init) -> None:
        rank = config.rank(path)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scaling = config.scaling(path)
        self.base_layer = base
        self.lora_A = Linear(self.in_features, rank, bias=False, init=init)
        self.lora_B = Linear(rank, self.out_features, bias=False, init=init)
        self.dropout = Dropout(config.lora_dropout)
        self.dropout.rng = init.rng  # the place's own: no two places drop the same elements
        if config.init_lora_weights == "gaussian":
            self.lora_A.weight.data = init.normal(rank, self.in_features, std=1 / rank)
        if config.init_lora_weights:
            self.lora_B.weight.data = init.zeros(self.out_features, rank)

    def __call__(self, x: Tensor) -> Tensor:
        keep = self.dropout.keep(x.shape)
        if isinstance(self.base_layer, Linear):
            return apply_fused(
                lora_linear,
                x,
                self.base_layer.weight,
                self.base_layer.bias,
                self.lora_A.weight,
                self.lora_B.weight,
                scaling=self.scaling,
                keep=keep,
                rate=self.dropout.rate,
            )
        dropped = x if keep is None else F.dropout(x, keep, self.dropout.rate)
        return self.base_layer(x) + self.lora_B(self.lora_A(dropped)) * self.scaling

    def delta(self) -> Array:
        """ΔW = s B A: (out, in)."""
        return self.scaling * (self.lora_B.weight.data @ self.lora_A.weight.data)

    def merge(self) -> Linear | None:
        """The plain layer W₀ + ΔW; None on a base that is no plain layer itself."""
        base = self.base_layer
        if not isinstance(base, Linear):
            return None
        weight = base.weight.data + self.delta().astype(base.weight.dtype)
        bias = None if base.bias is None else Parameter(base.bias.data.copy())
        return Linear.of(Parameter(weight), bias)


def lora_linear(
    needs: Needs,
    x: Array,
    weight: Array,
    bias: Array | None,
    a: Array,
    b: Array,
    *,
    scaling: float,
    keep: BoolArray | None = None,
    rate: float = 0.0,
) -> FusedResult:
    """y = x Wᵀ + b₀ + s (x̃ Aᵀ) Bᵀ, with x̃ the input after dropout, as one op.

    x (..., in), W (out, in), b₀ (out,), A (r, in), B (out, r) -> (..., out). Beside x, only the
    rank-r product x̃ Aᵀ is kept.
    """
    need_x, need_weight, need_bias, need_a, need_b = needs
    factor = None if keep is None else rows(keep * x.dtype.type(1 / (1 - rate)))
    x2, x_shape = rows(x), x.shape
    dropped = x2 if factor is None else x2 * factor
    low = dropped @ a.T  # (rows, r)
    low *= scaling
    y = x2 @ weight.T  # (rows, out)
    if bias is not None:
        y += bias
    y += low @ b.T
    kept_low = low if need_b else None
    kept_dropped = dropped if need_a else None
    kept_x = x2 if need_weight else None

    def pullback(g: Array) -> tuple[Array | None, ...]:
        g2 = rows(g)
        d_low = g2 @ b  # (rows, r)
        d_low *= scaling
        dx = None
        if need_x:
            dx = g2 @ weight
            through = d_low @ a
            dx += through if factor is None else np.multiply(through, factor, out=through)
        return (
            None if dx is None else dx.reshape(x_shape),
            None if kept_x is None else g2.T @ kept_x,
            g2.sum(axis=0) if need_bias else None,
            None if kept_dropped is None else d_low.T @ kept_dropped,
            None if kept_low is None else g2.T @ kept_low,
        )

    return y.reshape(*x_shape[:-1], len(weight)), pullback
