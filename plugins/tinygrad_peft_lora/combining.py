"""One LoRA out of several.

    ΔW = Σ wᵢ sᵢ Bᵢ Aᵢ = [w₁ s₁ B₁, w₂ s₂ B₂, ...] [A₁; A₂; ...]

The factors one after another are the sum itself, of rank Σ rᵢ. A smaller rank keeps its largest
singular values. TIES (Yadav et al. 2023, arXiv 2306.01708, section 3) and DARE (Yu et al. 2023,
arXiv 2311.03099, eq. 1) leave elements of the updates out before they are summed; both are of whole
updates ΔWᵢ, and not of the factors, whose elements mean nothing by themselves.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError, listed
from tinygrad_peft.peft import Combination, Combined
from tinygrad_peft_lora.config import LoraConfig

__all__ = ["combine_loras"]

A, B = "lora_A.weight", "lora_B.weight"
Factors: TypeAlias = tuple[Array, Array]  # B (out, r) with the scaling in it, and A (r, in)


def combine_loras(combination: Combination, configs: Sequence[LoraConfig]) -> Combined:
    """One LoRA in the place of several, whose configs are `configs`.

    Raises PeftError for what is no update of a weight: trained biases.
    """
    biased = [f"bias={c.bias!r}" for c in configs if c.bias != "none"]
    if biased:
        raise PeftError(f"LoRAs with trained biases cannot be combined:\n{listed(biased)}")
    sources = combination.sources
    whole = combination.combination_type == "linear" and combination.rank is None
    if whole and len(sources) == 1 and sources[0].weight == 1:
        return Combined(configs[0], sources[0].tensors)
    paths = dict.fromkeys(path for source in sources for path in source.tensors)
    factors, lost = {}, {}
    for place, path in enumerate(paths):
        parts = [
            (source.weight, config.scaling(path) * source.tensors[path][B], source.tensors[path][A])
            for source, config in zip(sources, configs, strict=True)
            if path in source.tensors
        ]
        factors[path], lost[path] = _combined(combination, parts, place)
    ranks = {path: len(a) for path, (_, a) in factors.items()}
    tensors = {path: {A: a, B: b} for path, (b, a) in factors.items()}
    return Combined(_config(configs, ranks), tensors, {p: x for p, x in lost.items() if x})


def _combined(
    how: Combination, parts: Sequence[tuple[float, Array, Array]], place: int
) -> tuple[Factors, float]:
    """The factors of the combined update, and the share of it that the rank left out."""
    if how.combination_type == "linear":
        b = np.concatenate([weight * b for weight, b, _ in parts], axis=1)  # (out, Σ r)
        a = np.concatenate([a for _, _, a in parts])  # (Σ r, in)
        return (
            ((b, a), 0.0) if how.rank is None or how.rank >= len(a) else truncated(b, a, how.rank)
        )
    updates = [(weight, b @ a) for weight, b, a in parts]
    update = _sparse_sum(how, updates, np.random.default_rng((how.seed, place)))
    full = min(update.shape)
    rank = sum(len(a) for _, _, a in parts) if how.rank is None else how.rank
    return truncated(update, np.eye(update.shape[1], dtype=update.dtype), min(rank, full))


def truncated(b: Array, a: Array, rank: int) -> tuple[Factors, float]:
    """The nearest B A of a rank (Eckart and Young 1936), and ‖what is left out‖ / ‖B A‖."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, s, vt = np.linalg.svd(r_b @ r_a.T)
    root = np.sqrt(s[:rank])
    near = (q_b @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ q_a.T)
    whole = float(np.linalg.norm(s))
    return near, float(np.linalg.norm(s[rank:])) / whole if whole else 0.0


def _sparse_sum(
    how: Combination, updates: Sequence[tuple[float, Array]], rng: np.random.Generator
) -> Array:
    """The weighted sum of updates (out, in) of which elements were left out."""
    if how.combination_type == "ties":
        kept = np.stack([w * _largest(update, how.density) for w, update in updates])
    else:
        kept = np.stack([w * _dropped(update, how.density, rng) for w, update in updates])
    if how.combination_type == "dare_linear":
        return np.asarray(kept.sum(axis=0))
    elected = np.sign(kept.sum(axis=0))  # the sign that has more weight, element by element
    agreeing = (np.sign(kept) == elected) & (kept != 0)
    return np.asarray((kept * agreeing).sum(axis=0) / np.maximum(agreeing.sum(axis=0), 1))


def _largest(update: Array, density: float) -> Array:
    """The elements of largest magnitude, a share `density` of them; zero elsewhere."""
    count = max(1, round(density * update.size))
    threshold = np.partition(np.abs(update), update.size - count, axis=None)[update.size - count]
    return np.where(np.abs(update) >= threshold, update, 0)


def _dropped(update: Array, density: float, rng: np.random.Generator) -> Array:
    """A share `density` of the elements, drawn at random, over the density; zero elsewhere."""
    keep = rng.random(update.shape) < density
    return np.where(keep, update / update.dtype.type(density), 0)


def _config(configs: Sequence[LoraConfig], ranks: Mapping[str, int]) -> LoraConfig:
    """Settings with which B A is the update itself: α = r at every path."""
    rank = max(set(ranks.values()), key=lambda r: (list(ranks.values()).count(r), r))
    other = {re.escape(path): r for path, r in ranks.items() if r != rank}
    same = {(c.target_modules, c.exclude_modules, c.layers_to_transform) for c in configs}
    first = configs[0]
    return dataclasses.replace(
        first,
        r=rank,
        lora_alpha=rank,
        rank_pattern=other,
        alpha_pattern=dict(other),
        use_rslora=False,
        init_lora_weights=True,
        target_modules=first.target_modules if len(same) == 1 else sorted(ranks),
        exclude_modules=first.exclude_modules if len(same) == 1 else None,
        layers_to_transform=first.layers_to_transform if len(same) == 1 else None,
    )
