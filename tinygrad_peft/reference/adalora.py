"""AdaLoRA: a budget of ranks, spent where it matters (Zhang et al. 2023, arXiv 2303.10512).

    y = x Wᵀ + s (E ⊙ x Aᵀ) Bᵀ,        s = α / (r + 10⁻⁵)                             (eq. 3)

    x (..., in)   the input
    W (out, in)   the pretrained weight, frozen
    A (r, in)     the right singular vectors, the paper's Q; starts as N(0, 0.02²)
    E (r, 1)      the singular values, the paper's Λ; starts at zero: the pretrained model
    B (out, r)    the left singular vectors, the paper's P; starts as N(0, 0.02²)

With g (..., out) the gradient of y, h = s g B, and sums over all rows of x and g:

    dA = (E ⊙ h)ᵀ x               (r, in)
    dE = Σ h ⊙ x Aᵀ               (r, 1)
    dB = (s g)ᵀ (E ⊙ x Aᵀ)        (out, r)
    dx = g W + (E ⊙ h) A          (..., in)

Nothing in this makes A and B orthogonal. A penalty on each (PEFT's; the paper squares it, eq. 4)
does, which is added to the loss with a weight:

    R(A) = ‖A Aᵀ - I‖_F,  dA = 2 M A / R  with M = A Aᵀ - I;        R(Bᵀ) for B

A triplet, a row of A and of E with a column of B, matters as much as its elements w do. Each has a
sensitivity I and an uncertainty U, averaged over the steps (eq. 8 to 11):

    i = |w dw|,   I ← β₁ I + (1 - β₁) i,   U ← β₂ U + (1 - β₂) |i - I|,   score(w) = I U

    score of triplet k = score(E_k) + mean_j score(A_kj) + mean_i score(B_ik)         (eq. 7)

At step t the b(t) triplets of the highest scores keep their singular values, and all others' become
zero (eq. 6). The budget falls as a cubic from b₀ to b₁, between step t_i and step T - t_f (eq. 12):

    b(t) = b₁ + (b₀ - b₁) (1 - (t - t_i) / (T - t_i - t_f))³

Merged, it is one plain weight again: W + s B (E ⊙ A).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tinygrad_peft.reference._basics import (
    Array,
    check_shape,
    check_sizes,
    check_width,
    generator,
    normal,
    remembered,
    rows,
)

__all__ = [
    "AdaLoRALayer",
    "Importance",
    "cubic_budget",
    "most_important",
    "orthogonality",
    "triplet_scores",
]


class AdaLoRALayer:
    """The triplets of singular vectors and values beside a frozen weight that the caller holds.

    rng: source of A and B; NumPy's global generator by default.

    `backward` leaves A_grad, E_grad and B_grad, which are zero before it.

    Raises:
        ValueError: a size below 1, or arrays whose shapes do not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 12,
        alpha: float = 8.0,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features, rank=rank)
        draws = generator(rng)
        self.scaling = alpha / (rank + 1e-5)
        self.A = normal(draws, rank, in_features, std=0.02)
        self.E: Array = np.zeros((rank, 1))
        self.B = normal(draws, out_features, rank, std=0.02)
        self.A_grad: Array = np.zeros_like(self.A)
        self.E_grad: Array = np.zeros_like(self.E)
        self.B_grad: Array = np.zeros_like(self.B)
        self._cache: tuple[Array, Array, Array] | None = None

    def forward(self, x: Array, W: Array) -> Array:
        """Compute y: x (..., in), W (out, in) -> (..., out)."""
        check_shape("W", W, (len(self.B), self.A.shape[1]))
        check_width("x", x, self.A.shape[1])
        # x Aᵀ
        Ax = x @ self.A.T  # (..., r)
        self._cache = x, W, Ax
        # y = x Wᵀ + s (E ⊙ x Aᵀ) Bᵀ
        return x @ W.T + self.scaling * ((self.E[:, 0] * Ax) @ self.B.T)

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of x, through both paths: (..., out) -> (..., in)."""
        x, W, Ax = remembered(self._cache)
        E = self.E[:, 0]  # (r,)
        # h = s g B
        h = self.scaling * grad_output @ self.B  # (..., r)
        # dA = (E ⊙ h)ᵀ x
        self.A_grad = rows(E * h).T @ rows(x)  # (r, in)
        # dE = Σ h ⊙ x Aᵀ
        self.E_grad = rows(h * Ax).sum(axis=0)[:, None]  # (r, 1)
        # dB = (s g)ᵀ (E ⊙ x Aᵀ)
        self.B_grad = self.scaling * rows(grad_output).T @ rows(E * Ax)  # (out, r)
        # dx = g W + (E ⊙ h) A
        return grad_output @ W + (E * h) @ self.A

    def merge(self, W: Array) -> Array:
        """Return the weight with the update in it: (out, in)."""
        check_shape("W", W, (len(self.B), self.A.shape[1]))
        # W + s B (E ⊙ A)
        return W + self.scaling * (self.B @ (self.E * self.A))

    def num_parameters(self) -> int:
        """Return r (in + out + 1)."""
        return self.A.size + self.E.size + self.B.size


def orthogonality(A: Array) -> tuple[float, Array]:
    """Return R and dA for the rows of A (r, in); the columns of B (out, r) are the rows of Bᵀ.

    R has no gradient where the rows are orthonormal: zero is returned there.
    """
    # M = A Aᵀ - I
    M = A @ A.T - np.eye(len(A))  # (r, r)
    # R = ‖M‖_F
    R = float(np.sqrt((M * M).sum()))
    # dA = 2 M A / R
    return R, 2 * M @ A / R if R else np.zeros_like(A)


class Importance:
    """The smoothed sensitivity and uncertainty of each element of one array, zero at first.

    Raises:
        ValueError: a factor that is not between 0 and 1.
    """

    def __init__(self, shape: tuple[int, ...], beta1: float = 0.85, beta2: float = 0.85) -> None:
        wrong = {name: b for name, b in (("beta1", beta1), ("beta2", beta2)) if not 0 < b < 1}
        if wrong:
            raise ValueError(f"expected factors between 0 and 1, got {wrong}")
        self.beta1, self.beta2 = beta1, beta2
        self.sensitivity: Array = np.zeros(shape)
        self.uncertainty: Array = np.zeros(shape)

    def update(self, w: Array, grad: Array) -> None:
        """Take a step's weights and their gradient into the averages."""
        # i = |w dw|
        i = np.abs(w * grad)
        # I ← β₁ I + (1 - β₁) i
        self.sensitivity = self.beta1 * self.sensitivity + (1 - self.beta1) * i
        # U ← β₂ U + (1 - β₂) |i - I|
        change = np.abs(i - self.sensitivity)
        self.uncertainty = self.beta2 * self.uncertainty + (1 - self.beta2) * change

    def score(self) -> Array:
        """Compute I U for each element."""
        return self.sensitivity * self.uncertainty


def triplet_scores(A: Array, E: Array, B: Array) -> Array:
    """Combine the scores of all elements, A (r, in), E (r, 1) and B (out, r), into (r,)."""
    # score(E_k) + mean_j score(A_kj) + mean_i score(B_ik)
    combined: Array = E[:, 0] + A.mean(axis=1) + B.mean(axis=0)
    return combined


def most_important(scores: Sequence[Array], budget: int) -> list[npt.NDArray[np.bool_]]:
    """Return masks of the triplets to keep: the `budget` of the highest scores, over all layers.

    Of triplets with the same score as the best that goes, none is kept.
    """
    ordered = np.sort(np.concatenate(scores))
    surplus = ordered.size - budget
    threshold = ordered[surplus - 1] if surplus > 0 else -np.inf
    return [score > threshold for score in scores]


def cubic_budget(step: int, start: int, end: int, *, tinit: int, tfinal: int, total: int) -> int:
    """Return b(t), from `start` to `end` triplets, at a step that is counted from 1."""
    if step <= tinit:
        return start
    if step >= total - tfinal:
        return end
    # b₁ + (b₀ - b₁) (1 - (t - t_i) / (T - t_i - t_f))³
    left = 1 - (step - tinit) / (total - tfinal - tinit)
    return int(end + (start - end) * left**3)
