"""Several LoRA adapters on one base model.

    W + sᵢ Bᵢ Aᵢ                 adapter i, alone
    W + Σ cᵢ sᵢ Bᵢ Aᵢ            a weighted sum of several, which is again one adapter:

    A = [A₁; A₂; ...]                       (Σ rᵢ, in)
    B = [c₁ s₁ B₁, c₂ s₂ B₂, ...]           (out, Σ rᵢ)
    s = 1

so that B A = Σ cᵢ sᵢ Bᵢ Aᵢ exactly. Averaging the A's and the B's instead would add products Bᵢ Aⱼ
of adapters that never met.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from tinygrad_peft.reference._basics import Array, unknown

__all__ = ["LoRAManager", "LoRAWeights"]

# For each adapted weight: A (r, in), B (out, r) and the scaling.
LoRAWeights: TypeAlias = Mapping[str, tuple[Array, Array, float]]


class LoRAManager:
    """Named adapters on a base model, one of them active at a time, or none.

    base_model: the model's weights by name, (out, in) each. The mapping and its arrays are left
        as they are; `base_model` is a mapping of the manager's own.
    """

    def __init__(self, base_model: Mapping[str, Array]) -> None:
        self.base_model = dict(base_model)
        self.adapters: dict[str, LoRAWeights] = {}
        self.active: str | None = None

    def add_adapter(self, name: str, lora_weights: LoRAWeights) -> None:
        """Keep an adapter under a name that is not taken. It is not active yet.

        Raises:
            ValueError: the name is taken, or weights do not fit the base model: all that do not.
        """
        problems = [f"the name {name!r} is taken"] if name in self.adapters else []
        problems += [p for w, (A, B, _) in lora_weights.items() for p in self._misfits(w, A, B)]
        if problems:
            raise ValueError(f"adapter {name!r}: {'; '.join(problems)}")
        self.adapters[name] = dict(lora_weights)

    def switch_adapter(self, name: str | None) -> None:
        """Make an adapter the active one; None for the base model alone."""
        if name is not None:
            self._adapter(name)
        self.active = name

    def weights(self) -> dict[str, Array]:
        """The model as it is now: the base's weights, with the active adapter's update."""
        return self._merged({} if self.active is None else self.adapters[self.active])

    def merge_adapter(self, name: str) -> None:
        """Fold an adapter into the base model for good. It is no adapter afterwards."""
        self.base_model = self._merged(self._adapter(name))
        del self.adapters[name]
        if self.active == name:
            self.active = None

    def combine_adapters(
        self, names: Sequence[str], weights: Sequence[float]
    ) -> dict[str, tuple[Array, Array, float]]:
        """One adapter whose update is the weighted sum of others'; `add_adapter` keeps it.

        Raises:
            ValueError: no names, not one weight for each, or an unknown name.
        """
        if not names or len(names) != len(weights):
            raise ValueError(
                f"expected a weight for each name, got {len(names)} names and "
                f"{len(weights)} weights"
            )
        parts = [(self._adapter(n), c) for n, c in zip(names, weights, strict=True)]
        adapted = dict.fromkeys(w for adapter, _ in parts for w in adapter)
        return {w: _sum((*a[w], c) for a, c in parts if w in a) for w in adapted}

    def _adapter(self, name: str) -> LoRAWeights:
        if name not in self.adapters:
            raise unknown("adapter", name, self.adapters)
        return self.adapters[name]

    def _merged(self, adapter: LoRAWeights) -> dict[str, Array]:
        # W + s B A
        updated = {w: self.base_model[w] + s * (B @ A) for w, (A, B, s) in adapter.items()}
        return {**self.base_model, **updated}

    def _misfits(self, weight: str, A: Array, B: Array) -> Iterable[str]:
        if weight not in self.base_model:
            yield str(unknown("weight", weight, self.base_model))
            return
        out_features, in_features = self.base_model[weight].shape
        rank = len(A)
        if A.shape != (rank, in_features) or B.shape != (out_features, rank):
            yield (
                f"{weight}: expected A (r, {in_features}) and B ({out_features}, r), "
                f"got {A.shape} and {B.shape}"
            )


def _sum(parts: Iterable[tuple[Array, Array, float, float]]) -> tuple[Array, Array, float]:
    """The adapter of Σ c s B A, from (A, B, s, c) of each."""
    each = list(parts)
    # A = [A₁; A₂; ...]
    A = np.concatenate([A for A, _, _, _ in each], axis=0)  # (Σ r, in)
    # B = [c₁ s₁ B₁, c₂ s₂ B₂, ...]
    B = np.concatenate([c * s * B for _, B, s, c in each], axis=1)  # (out, Σ r)
    return A, B, 1.0
