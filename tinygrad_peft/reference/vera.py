"""VeRA: vectors around random matrices (Kopiczko et al. 2024, arXiv 2310.11454, eq. 2).

    y = x Wᵀ + λ_b ⊙ (λ_d ⊙ x Aᵀ) Bᵀ

    x   (..., in)   the input
    W   (out, in)   the pretrained weight, frozen
    A   (r, in)     random, frozen, the same for every layer; U(±√(6 / in))
    B   (out, r)    random, frozen, the same for every layer; U(±√(6 / r))
    λ_d (r,)        starts at 0.1
    λ_b (out,)      starts at zero, so that training begins at the pretrained model

With g (..., out) the gradient of y, h = (λ_b ⊙ g) B, and sums over all rows of x and g:

    dλ_b = Σ g ⊙ (λ_d ⊙ x Aᵀ) Bᵀ       (out,)
    dλ_d = Σ h ⊙ x Aᵀ                  (r,)
    dx   = g W + (λ_d ⊙ h) A           (..., in)

Merged, it is one plain weight again: W + diag(λ_b) B diag(λ_d) A.
"""

import numpy as np

from tinygrad_peft.reference._basics import (
    Array,
    Draws,
    check_shape,
    check_sizes,
    check_width,
    generator,
    remembered,
    rows,
)

__all__ = ["VeRALayer"]


class VeRALayer:
    """The two vectors of one layer, and the random matrices between them.

    A, B: another layer's of the same sizes, to share them; drawn if they are left out.
    rng: source of A and B; NumPy's global generator by default.

    `backward` leaves lambda_d_grad and lambda_b_grad, which are zero before it.

    Raises:
        ValueError: a size below 1, or arrays whose shapes do not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 256,
        *,
        A: Array | None = None,
        B: Array | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features, rank=rank)
        draws = generator(rng)
        self.A = _uniform(draws, rank, in_features) if A is None else A
        self.B = _uniform(draws, out_features, rank) if B is None else B
        check_shape("A", self.A, (rank, in_features))
        check_shape("B", self.B, (out_features, rank))
        self.lambda_d: Array = np.full(rank, 0.1)
        self.lambda_b: Array = np.zeros(out_features)
        self.lambda_d_grad: Array = np.zeros_like(self.lambda_d)
        self.lambda_b_grad: Array = np.zeros_like(self.lambda_b)
        self._cache: tuple[Array, Array] | None = None

    def forward(self, x: Array, W: Array) -> Array:
        """Compute y: x (..., in), W (out, in) -> (..., out)."""
        check_shape("W", W, (len(self.B), self.A.shape[1]))
        check_width("x", x, self.A.shape[1])
        self._cache = x, W
        # y = x Wᵀ + λ_b ⊙ (λ_d ⊙ x Aᵀ) Bᵀ
        return x @ W.T + self.lambda_b * self._scaled(x)

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of x, through both paths: (..., out) -> (..., in)."""
        x, W = remembered(self._cache)
        # h = (λ_b ⊙ g) B
        h = (self.lambda_b * grad_output) @ self.B  # (..., r)
        # dλ_b = Σ g ⊙ (λ_d ⊙ x Aᵀ) Bᵀ
        self.lambda_b_grad = rows(grad_output * self._scaled(x)).sum(axis=0)
        # dλ_d = Σ h ⊙ x Aᵀ
        self.lambda_d_grad = rows(h * (x @ self.A.T)).sum(axis=0)
        # dx = g W + (λ_d ⊙ h) A
        return grad_output @ W + (self.lambda_d * h) @ self.A

    def merge(self, W: Array) -> Array:
        """Return the weight with the update in it: (out, in)."""
        check_shape("W", W, (len(self.B), self.A.shape[1]))
        # W + diag(λ_b) B diag(λ_d) A
        return W + (self.lambda_b[:, None] * self.B) @ (self.lambda_d[:, None] * self.A)

    def num_parameters(self) -> int:
        """Return out + r."""
        return self.lambda_b.size + self.lambda_d.size

    def _scaled(self, x: Array) -> Array:
        """Compute (λ_d ⊙ x Aᵀ) Bᵀ: (..., in) -> (..., out)."""
        scaled: Array = (self.lambda_d * (x @ self.A.T)) @ self.B.T
        return scaled


def _uniform(draws: Draws, out_features: int, in_features: int) -> Array:
    """Draw from U(±√(6 / in)): He et al. 2015."""
    bound = np.sqrt(6 / in_features)
    return draws.uniform(-bound, bound, (out_features, in_features))
