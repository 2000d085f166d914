"""Weighted sums of updates.

Concatenating the factors of low-rank updates gives their sum exactly,

    Σ wᵢ Bᵢ Aᵢ = [w₁ B₁, w₂ B₂, ...] [A₁; A₂; ...]

of rank Σ rᵢ. A smaller rank keeps the largest singular values. TIES (Yadav et al. 2023, arXiv
2306.01708, section 3) and DARE (Yu et al. 2023, arXiv 2311.03099, eq. 1) drop elements of the
updates before summing. Both act on whole updates, not on the factors, whose elements mean nothing
by themselves.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.peft import Combination

__all__ = ["combined_factors", "summed", "truncated"]

Factors: TypeAlias = tuple[Array, Array]  # B (out, r) with the scaling in it, and A (r, in)


def combined_factors(
    how: Combination, parts: Sequence[tuple[float, Array, Array]], place: int
) -> tuple[Factors, float]:
    """Return the factors of the combined update, and the share of it that the rank drops."""
    if how.combination_type == "linear":
        b = np.concatenate([weight * b for weight, b, _ in parts], axis=1)  # (out, Σ r)
        a = np.concatenate([a for _, _, a in parts])  # (Σ r, in)
        return (
            ((b, a), 0.0) if how.rank is None or how.rank >= len(a) else truncated(b, a, how.rank)
        )
    update = summed(how, [(weight, b @ a) for weight, b, a in parts], place)
    rank = sum(len(a) for _, _, a in parts) if how.rank is None else how.rank
    small = np.eye(min(update.shape), dtype=update.dtype)
    b, a = (small, update) if len(small) == len(update) else (update, small)
    return truncated(b, a, min(rank, len(small)))


def truncated(b: Array, a: Array, rank: int) -> tuple[Factors, float]:
    """Return the nearest B A of a rank (Eckart and Young 1936), and the rest's relative norm."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, s, vt = np.linalg.svd(r_b @ r_a.T)
    root = np.sqrt(s[:rank])
    near = (q_b @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ q_a.T)
    whole = float(np.linalg.norm(s))
    return near, float(np.linalg.norm(s[rank:])) / whole if whole else 0.0


def summed(how: Combination, updates: Sequence[tuple[float, Array]], place: int) -> Array:
    """Sum weighted updates of one shape, without the elements that TIES or DARE drops."""
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
