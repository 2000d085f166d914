"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1, eq. 3).

    y = W₀ x + ΔW x = W₀ x + s B A x,        s = α / r

    W₀ (out, in)  the frozen weight
    A  (r, in)    starts Kaiming-uniform, U(±1/√in)
    B  (out, r)   starts at zero, so that ΔW = B A does, and training begins at the base model

With g the gradient of y:  dB = s g (A x)ᵀ,  dA = s Bᵀ g xᵀ,  dx = W₀ᵀ g + s Aᵀ Bᵀ g.
Merged, the layer is the plain W₀ + s B A: no cost at inference. With `lora_bias`, B has a bias β:
y gains s β, and the merged layer has it in its own bias.
"""

import math

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, rows
from tinygrad_peft.errors import ShapeError
from tinygrad_peft.nn import Affine, Dropout, Init, Linear, Module, Parameter
from tinygrad_peft.nn import functional as F
from tinygrad_peft.ops import FusedResult, Needs
from tinygrad_peft.tensor import Tensor, apply_fused
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.initialisation import orthogonal

__all__ = ["LoraLinear", "Mergeable", "lora_affine", "lora_linear"]


class Mergeable(Module):
    """A wrapper of LoRA's that can be merged into a plain module."""

    def merge(self) -> Module | None:
        """Return a plain module with the same output; None where the base is not plain."""
        raise NotImplementedError


class LoraLinear(Mergeable):
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
        self.lora_B = Linear(rank, self.out_features, bias=config.lora_bias, init=init)
        self.dropout = Dropout(config.lora_dropout)
        self.dropout.rng = init.rng  # its own stream: no two layers drop the same elements
        self._start(config, rank, init)

    def _start(self, config: LoraConfig, rank: int, init: Init) -> None:
        a, b, bias = self.lora_A.weight, self.lora_B.weight, self.lora_B.bias
        if config.start == "orthogonal":
            a.data, b.data = orthogonal(self.in_features, self.out_features, rank, init)
        elif config.start:
            b.data = init.zeros(self.out_features, rank)
        if config.start == "gaussian":
            a.data = init.normal(rank, self.in_features, std=1 / rank)
        if not config.start and bias is not None:
            bias.data = init.uniform(self.out_features, bound=1 / math.sqrt(rank))

    def __call__(self, x: Tensor) -> Tensor:
        keep = self.dropout.keep(x.shape)
        a, b = self.lora_A.weight, self.lora_B.weight
        y = lora_affine(self.base_layer, x, a, b, self.scaling, keep=keep, rate=self.dropout.rate)
        return y if self.lora_B.bias is None else y + self.lora_B.bias * self.scaling

    def delta(self) -> Array:
        """ΔW = s B A: (out, in)."""
        return self.scaling * (self.lora_B.weight.data @ self.lora_A.weight.data)

    def merge(self) -> Linear | None:
        """Return the plain layer W₀ + ΔW; None where the base is not plain."""
        base = self.base_layer
        if not isinstance(base, Linear):
            return None
        weight = base.weight.data + self.delta().astype(base.weight.dtype)
        bias = None if base.bias is None else base.bias.data.copy()
        if self.lora_B.bias is not None:
            shift = (self.scaling * self.lora_B.bias.data).astype(weight.dtype)
            bias = shift if bias is None else bias + shift
        return Linear.of(Parameter(weight), None if bias is None else Parameter(bias))


def lora_affine(
    base: Affine,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    *,
    keep: BoolArray | None = None,
    rate: float = 0.0,
) -> Tensor:
    """base(x) + s B A dropout(x): (..., in) -> (..., out). One op where the base is plain."""
    if isinstance(base, Linear):
        settings = {"scaling": scaling, "keep": keep, "rate": rate}
        return apply_fused(lora_linear, x, base.weight, base.bias, a, b, **settings)
    dropped = x if keep is None else F.dropout(x, keep, rate)
    return base(x) + F.linear(F.linear(dropped, a), b) * scaling


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

    x (..., in), W (out, in), b₀ (out,), A (r, in), B (out, r) -> (..., out). Beside x, only what
    dropout keeps and the rank-r product x̃ Aᵀ are kept.

    Raises ShapeError where x is of another width.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"lora_linear: x {x.shape} for a weight {weight.shape}")
    need_x, need_weight, need_bias, need_a, need_b = needs
    x2, x_shape = rows(x), x.shape
    keep2 = None if keep is None else keep.reshape(x2.shape)
    factor = scaling if keep is None else scaling / (1 - rate)
    low = _dropped(x2, keep2) @ a.T  # (rows, r)
    low *= factor
    y = x2 @ weight.T  # (rows, out)
    if bias is not None:
        y += bias
    y += low @ b.T
    kept_low = low if need_b else None
    kept_x = x2 if need_weight or need_a else None

    def pullback(g: Array) -> tuple[Array | None, ...]:
        g2 = rows(g)
        d_low = g2 @ b  # (rows, r)
        d_low *= factor
        dx = None
        if need_x:
            dx = g2 @ weight
            through = d_low @ a
            dx += through if keep2 is None else np.multiply(through, keep2, out=through)
        return (
            None if dx is None else dx.reshape(x_shape),
            g2.T @ kept_x if need_weight and kept_x is not None else None,
            g2.sum(axis=0) if need_bias else None,
            d_low.T @ _dropped(kept_x, keep2) if need_a and kept_x is not None else None,
            None if kept_low is None else g2.T @ kept_low,
        )

    return y.reshape(*x_shape[:-1], len(weight)), pullback


def _dropped(x: Array, keep: BoolArray | None) -> Array:
    """Apply the dropout mask to x, without the rescaling."""
    return x if keep is None else x * keep
