"""AdaLoRA: an update as an SVD that is trained (Zhang et al. 2023, arXiv 2303.10512, eq. 3).

    y = W₀ x + ΔW x = W₀ x + s B (E ⊙ A x),        s = α / (r + 10⁻⁵)

    W₀ (out, in)  the frozen weight
    A  (r, in)    the right singular vectors, the paper's Q; starts as N(0, 0.02²)
    E  (r, 1)     the singular values, the paper's Λ; starts at zero: the base model
    B  (out, r)   the left singular vectors, the paper's P; starts as N(0, 0.02²)

With g the gradient of y and h = s Bᵀ g:  dB = s g (E ⊙ A x)ᵀ, dE = h ⊙ A x summed over the tokens,
dA = (E ⊙ h) xᵀ, dx = W₀ᵀ g + Aᵀ (E ⊙ h). Merged, the layer is the plain W₀ + s B (E ⊙ A).

Triplet k is a row of A and of E with a column of B. It is as important as its elements (eq. 7):

    score of triplet k = score(E_k) + mean_j score(A_kj) + mean_i score(B_ik)

Pruning leaves s alone, as in PEFT: r stays the rank at the start.
"""

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray
from tinygrad_peft.nn import Affine, Dropout, Init, Linear, Module, Optimizer, Parameter
from tinygrad_peft.nn import functional as F
from tinygrad_peft.ops import Result
from tinygrad_peft.tensor import Tensor, apply
from tinygrad_peft_adalora.budget import Budget
from tinygrad_peft_adalora.importance import Importance

__all__ = ["AdaLoraLinear", "orthogonality"]


class AdaLoraLinear(Module):
    """base(x) + s B (E ⊙ A dropout(x)): (..., in_features) -> (..., out_features).

    `budget` is shared by the layers of a step.
    """

    base_layer: Affine

    def __init__(self, base: Affine, budget: Budget, path: str, init: Init) -> None:
        config = budget.config
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.budget, self.scaling = budget, config.scaling
        self.kept: BoolArray = np.array(config.kept(path))
        rank, std = config.rank(path), 0.02 if config.init_lora_weights else 1.0
        self.lora_A = Parameter(init.normal(rank, self.in_features, std=std))
        self.lora_E = Parameter(init.normal(rank, 1, std=1.0))
        if config.init_lora_weights:
            self.lora_E.data = init.zeros(rank, 1)
        self.lora_B = Parameter(init.normal(self.out_features, rank, std=std))
        self.dropout = Dropout(config.lora_dropout)
        self.dropout.rng = init.rng  # the place's own: no two places drop the same elements
        self.importance: dict[str, Importance] = {}

    def __call__(self, x: Tensor) -> Tensor:
        keep = self.dropout.keep(x.shape)
        dropped = x if keep is None else F.dropout(x, keep, self.dropout.rate)
        low = F.linear(dropped, self.lora_A * self.lora_E)
        return self.base_layer(x) + F.linear(low, self.lora_B) * self.scaling

    def delta(self) -> Array:
        """ΔW = s B (E ⊙ A): (out, in)."""
        return self.scaling * (self.lora_B.data @ (self.lora_E.data * self.lora_A.data))

    def merge(self) -> Linear | None:
        """Return the plain layer W₀ + ΔW; None on a base that is not a plain layer itself."""
        base = self.base_layer
        if not isinstance(base, Linear):
            return None
        weight = base.weight.data + self.delta().astype(base.weight.dtype)
        bias = None if base.bias is None else Parameter(base.bias.data.copy())
        return Linear.of(Parameter(weight), bias)

    # ---------- what is left of the rank ----------

    @property
    def triplets(self) -> dict[str, Parameter]:
        """A, E and B by their names."""
        return {"lora_A": self.lora_A, "lora_E": self.lora_E, "lora_B": self.lora_B}

    @property
    def is_trained(self) -> bool:
        """True if A, E and B are all trained: a frozen layer has no part in the budget."""
        return all(parameter.requires_grad for parameter in self.triplets.values())

    @property
    def rank(self) -> int:
        """The number of triplets that are left."""
        return self.lora_E.shape[0]

    @property
    def pattern(self) -> tuple[bool, ...]:
        """One entry per initial triplet, true if it is left: (init_r,)."""
        if self.kept.sum() == self.rank:
            return tuple(self.kept.tolist())
        # Weights of before the pruning are back, which has forgotten their places.
        return tuple(k < self.rank for k in range(self.kept.size))

    @property
    def total_step(self) -> int | None:
        """The length of the run that prunes it; None before its first step."""
        return self.budget.total_step

    def importance_of(self, name: str) -> Importance:
        """Return I and U of A, E or B."""
        return self.importance.get(name) or Importance.none(self.triplets[name].data)

    def observe(self) -> None:
        """Take the weights and their gradients into the averages I and U."""
        config = self.budget.config
        for name, parameter in self.triplets.items():
            if parameter.grad is not None:
                self.importance[name] = self.importance_of(name).after(
                    parameter.data, parameter.grad, config.beta1, config.beta2
                )

    def scores(self) -> Array:
        """Compute score(E_k) + mean_j score(A_kj) + mean_i score(B_ik): (r,)."""
        a, e, b = (self.importance_of(name).score() for name in self.triplets)
        scores: Array = e[:, 0] + (a.mean(axis=1) + b.mean(axis=0))
        return scores

    def mask(self, kept: BoolArray) -> None:
        """Set the singular values of all other triplets to zero; they may grow again."""
        self.lora_E.data = np.where(kept[:, None], self.lora_E.data, 0)

    def prune(self, kept: BoolArray, optimizer: Optimizer) -> None:
        """Remove all other triplets, and what the optimiser remembers of them."""
        places = np.array(self.pattern)
        places[places] = kept
        for name, parameter in self.triplets.items():
            optimizer.keep_rows(parameter, kept, axis=1 if name == "lora_B" else 0)
        self.kept, self.importance = places, {}

    def penalty(self) -> Tensor:
        """‖A Aᵀ - I‖_F + ‖Bᵀ B - I‖_F: a scalar."""
        return orthogonality(self.lora_A) + orthogonality(self.lora_B.transpose(1, 0))


def orthogonality(p: Tensor) -> Tensor:
    """‖P Pᵀ - I‖_F, the distance of the rows of P (r, n) from orthonormal ones: a scalar.

    With M = P Pᵀ - I, the gradient is 2 M P / ‖M‖_F, taken for zero where M is.
    """
    return apply(_distance, p)


def _distance(p: Array) -> Result:
    m = p @ p.T
    m[np.diag_indices(len(m))] -= 1
    norm = np.sqrt((m * m).sum())

    def pullback(g: Array) -> Array:
        return g * (2 / norm) * (m @ p) if norm else np.zeros_like(p)

    return np.asarray(norm), (pullback,)
