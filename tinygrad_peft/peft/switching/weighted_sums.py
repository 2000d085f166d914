"""Weighted sums of updates, with all of their elements or with a part.

TIES (Yadav et al. 2023, arXiv 2306.01708, section 3) and DARE (Yu et al. 2023, arXiv 2311.03099,
eq. 1) drop elements of the updates before summing. Both act on whole updates: the elements of a
low-rank update's factors mean nothing by themselves.
"""

from collections.abc import Sequence

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.peft.hook_types import Combination

__all__ = ["weighted_sum"]


def weighted_sum(how: Combination, updates: Sequence[tuple[float, Array]], place: int) -> Array:
    """Return Σ wᵢ ΔWᵢ of pairs (wᵢ, ΔWᵢ), without the elements that TIES or DARE drops.

    The updates have one shape. `place`, the position of the module among the combined ones, gives
    each module other random choices.
    """
    if how.combination_type == "linear":
        return np.asarray(sum(weight * update for weight, update in updates))
    rng = np.random.default_rng((how.seed, place))
    if how.combination_type == "ties":
        kept = np.stack([w * _largest(update, how.density) for w, update in updates])
    else:
        kept = np.stack([w * _dropped(update, how.density, rng) for w, update in updates])
    if how.combination_type == "dare_linear":
        return np.asarray(kept.sum(axis=0))
    elected = np.sign(kept.sum(axis=0))  # the dominant sign per element
    agreeing = (np.sign(kept) == elected) & (kept != 0)
    return np.asarray((kept * agreeing).sum(axis=0) / np.maximum(agreeing.sum(axis=0), 1))


def _largest(update: Array, density: float) -> Array:
    """Keep the share `density` of the elements with the largest magnitudes; zero the others."""
    count = max(1, round(density * update.size))
    threshold = np.partition(np.abs(update), update.size - count, axis=None)[update.size - count]
    return np.where(np.abs(update) >= threshold, update, 0)


def _dropped(update: Array, density: float, rng: np.random.Generator) -> Array:
    """Keep a random share `density` of the elements, divided by it; zero the others."""
    keep = rng.random(update.shape) < density
    return np.where(keep, update / update.dtype.type(density), 0)
