"""The allocation of a budget to the layers of a step (Zhang et al. 2023, Algorithm 1).

After each step of the optimiser every layer takes the gradients into its averages. Where an
allocation is due, the b(t) triplets of the highest scores over all layers stay, and the singular
values of all others become zero. With the last allocation the others are removed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray
from tinygrad_peft.nn import Module, Optimizer
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_adalora.budget import Budget
from tinygrad_peft_adalora.layer import AdaLoraLinear

__all__ = ["allocate", "most_important", "penalty", "trained_layers"]


def trained_layers(model: Module) -> dict[Budget, list[AdaLoraLinear]]:
    """Return the layers of a model that are trained whole, those of each step by its budget."""
    steps: dict[Budget, list[AdaLoraLinear]] = {}
    for _, module in model.named_modules():
        if isinstance(module, AdaLoraLinear) and module.is_trained:
            steps.setdefault(module.budget, []).append(module)
    return steps


def penalty(steps: Mapping[Budget, Sequence[AdaLoraLinear]]) -> Tensor | None:
    """Compute the orthogonality penalty of all steps, a scalar; None where all weigh it 0.

    It is PEFT's: of each step, the mean over all its A and B, times `orth_reg_weight`.
    """
    terms = [
        layer.penalty() * (budget.config.orth_reg_weight / (2 * len(layers)))
        for budget, layers in steps.items()
        for layer in layers
        if budget.config.orth_reg_weight
    ]
    return sum(terms[1:], start=terms[0]) if terms else None


def allocate(
    budget: Budget, layers: Sequence[AdaLoraLinear], optimizer: Optimizer, *, run: int
) -> None:
    """Spend the budget after a step of the optimiser, with the gradients still there.

    `run` is the number of steps of the whole run.
    """
    budget.advance(sum(layer.rank for layer in layers), run)
    # As in PEFT, the step of the last allocation is not averaged; a run of one step has no other.
    if budget.step < budget.last or budget.step == 1:
        for layer in layers:
            layer.observe()
    if not budget.is_due:
        return
    kept = most_important([layer.scores() for layer in layers], budget.triplets(len(layers)))
    for layer, mask in zip(layers, kept, strict=True):
        if budget.step == budget.last:
            layer.prune(mask, optimizer)
        else:
            layer.mask(mask)


def most_important(scores: Sequence[Array], budget: int) -> list[BoolArray]:
    """Return masks of the `budget` highest scores over all layers: (r,) each.

    Of scores equal to the highest that is left out, none is kept.
    """
    together = np.concatenate(scores)
    surplus = together.size - budget
    if surplus <= 0:
        return [np.ones(score.shape, np.bool_) for score in scores]
    threshold = np.partition(together, surplus - 1)[surplus - 1]
    return [score > threshold for score in scores]
