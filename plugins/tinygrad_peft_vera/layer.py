"""VeRA: vector-based random matrix adaptation (Kopiczko et al. 2024, arXiv 2310.11454, eq. 2).

    y = W₀ x + ΔW x = W₀ x + Λ_b B Λ_d A x,        Λ_b = diag(λ_b), Λ_d = diag(λ_d)

    W₀  (out, in)            the frozen weight
    A   (r, in), B (out, r)  frozen and random, the same for every layer (`projection`)
    λ_d (r,)                 trained, starts at d_initial
    λ_b (out,)               trained, starts at zero, so that training begins at the base model

With g the gradient of y and h = Bᵀ (λ_b ⊙ g):  dλ_b = g ⊙ B (λ_d ⊙ A x) and dλ_d = h ⊙ A x, each
summed over the tokens, and dx = W₀ᵀ g + Aᵀ (λ_d ⊙ h).
Merged, the layer is the plain W₀ + Λ_b B Λ_d A: no cost at inference.
"""

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, rows
from tinygrad_peft.errors import ShapeError
from tinygrad_peft.nn import Affine, Dropout, Init, Linear, Module, Parameter
from tinygrad_peft.ops import FusedResult, Needs
from tinygrad_peft.tensor import Tensor, apply_fused
from tinygrad_peft_vera.config import VeraConfig
from tinygrad_peft_vera.projection import Projection

__all__ = ["VeraLinear", "vera_update"]


class VeraLinear(Module):
    """base(x) + Λ_b B Λ_d A dropout(x): (..., in_features) -> (..., out_features)."""

    base_layer: Affine

    def __init__(
        self, base: Affine, config: VeraConfig, projection: Projection, init: Init
    ) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.vera_lambda_b = Parameter(init.zeros(self.out_features))
        self.vera_lambda_d = Parameter(init.constant(config.r, value=config.d_initial))
        self.projection = projection
        self.dropout = Dropout(config.vera_dropout)
        self.dropout.rng = init.rng  # its own stream: no two layers drop the same elements

    def __call__(self, x: Tensor) -> Tensor:
        a, b = self.matrices
        return self.base_layer(x) + apply_fused(
            vera_update,
            x,
            self.vera_lambda_d,
            self.vera_lambda_b,
            a=a,
            b=b,
            keep=self.dropout.keep(x.shape),
            rate=self.dropout.rate,
        )

    @property
    def matrices(self) -> tuple[Array, Array]:
        """This layer's parts of A (r, in) and B (out, r): views."""
        a, b = self.projection.matrices
        return a[:, : self.in_features], b[: self.out_features]

    def delta(self) -> Array:
        """ΔW = Λ_b B Λ_d A: (out, in)."""
        a, b = self.matrices
        update: Array = (self.vera_lambda_b.data[:, None] * b) @ (
            self.vera_lambda_d.data[:, None] * a
        )
        return update

    def merge(self) -> Linear | None:
        """Return the plain layer W₀ + ΔW; None where the base is not plain."""
        base = self.base_layer
        if not isinstance(base, Linear):
            return None
        bias = None if base.bias is None else Parameter(base.bias.data.copy())
        return Linear.of(Parameter(base.weight.data + self.delta()), bias)


def vera_update(
    needs: Needs,
    x: Array,
    lambda_d: Array,
    lambda_b: Array,
    *,
    a: Array,
    b: Array,
    keep: BoolArray | None = None,
    rate: float = 0.0,
) -> FusedResult:
    """Λ_b B Λ_d A x̃, with x̃ the input after dropout, as one op.

    x (..., in), λ_d (r,), λ_b (out,), A (r, in), B (out, r) -> (..., out). Only what dropout keeps
    and the rank-r product A x̃ are kept; A and B are constants.

    Raises ShapeError where x is of another width.
    """
    if x.shape[-1] != a.shape[1]:
        raise ShapeError(f"vera_update: x {x.shape} for a projection {a.shape}")
    need_x, need_d, need_b = needs
    x2, x_shape = rows(x), x.shape
    keep2 = None if keep is None else keep.reshape(x2.shape)
    factor = 1.0 if keep is None else 1 / (1 - rate)
    low = (x2 if keep2 is None else x2 * keep2) @ a.T  # (rows, r)
    low *= factor
    y = (low * lambda_d) @ b.T  # (rows, out)
    y *= lambda_b
    kept = low if need_d or need_b else None

    def pullback(g: Array) -> tuple[Array | None, ...]:
        g2 = rows(g)
        through = (g2 * lambda_b) @ b if need_x or need_d else None  # (rows, r)
        dx = d_lambda_d = d_lambda_b = None
        if need_d and through is not None and kept is not None:
            d_lambda_d = np.einsum("ij,ij->j", through, kept)
        if need_b and kept is not None:
            d_lambda_b = np.einsum("ij,ij->i", g2.T @ (kept * lambda_d), b)
        if need_x and through is not None:
            dx = (through * (lambda_d * factor)) @ a
            dx = (dx if keep2 is None else dx * keep2).reshape(x_shape)
        return dx, d_lambda_d, d_lambda_b

    return y.reshape(*x_shape[:-1], len(b)), pullback
