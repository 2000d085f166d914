"""One (IA)³ from several: the weighted sum of their changes to the weight.

A vector l changes the weight by (l - 1) ⊙ W, so the sum of several changes has the vector

    l = 1 + Σ wᵢ (lᵢ - 1)

It equals Σ wᵢ lᵢ only where the weights sum to one and all of them adapt the layer.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError, listed
from tinygrad_peft.peft import Combination, Combined
from tinygrad_peft_ia3.config import IA3Config

__all__ = ["combine_vectors"]

VECTOR = "ia3_l"


def combine_vectors(how: Combination, configs: Sequence[IA3Config]) -> Combined:
    """Combine several (IA)³, with these configs, into one.

    Raises PeftError for combinations other than the whole weighted sum, and for a layer whose input
    one adapter multiplies and whose output another.
    """
    _refuse_parts(how)
    paths = dict.fromkeys(path for source in how.sources for path in source.tensors)
    vectors = {
        path: [(s.weight, s.tensors[path][VECTOR]) for s in how.sources if path in s.tensors]
        for path in paths
    }
    _refuse_both_sides(vectors)
    combined = {path: _sum_of_changes(parts) for path, parts in vectors.items()}
    settings = _settings(configs, combined)
    return Combined(settings, {path: {VECTOR: vector} for path, vector in combined.items()})


def _refuse_parts(how: Combination) -> None:
    problems = []
    if how.combination_type != "linear":
        problems.append(f"combination_type: expected 'linear', got {how.combination_type!r}")
    if how.rank is not None:
        problems.append(f"rank: expected None, since vectors have no rank, got {how.rank}")
    if problems:
        raise PeftError(f"cannot combine (IA)³ this way:\n{listed(problems)}")


def _refuse_both_sides(vectors: Mapping[str, Sequence[tuple[float, Array]]]) -> None:
    mixed = [path for path, parts in vectors.items() if len({v.shape for _, v in parts}) > 1]
    if mixed:
        why = "one adapter multiplies its input, another its output"
        found = listed(f"{path}: {why}" for path in mixed)
        raise PeftError(f"cannot combine these vectors:\n{found}")


def _sum_of_changes(parts: Sequence[tuple[float, Array]]) -> Array:
    """1 + Σ wᵢ (lᵢ - 1), with the ones cancelling exactly where the weights sum to one."""
    left = 1 - math.fsum(weight for weight, _ in parts)
    total = np.full_like(parts[0][1], left)
    for weight, vector in parts:
        total += weight * vector
    return total


def _settings(configs: Sequence[IA3Config], vectors: Mapping[str, Array]) -> IA3Config:
    """Return settings that name all paths, and those with vectors on the input."""
    if len({(c.target_modules, c.exclude_modules, c.feedforward_modules) for c in configs}) == 1:
        return configs[0]
    return dataclasses.replace(
        configs[0],
        target_modules=sorted(vectors),
        exclude_modules=None,
        feedforward_modules=sorted(path for path, v in vectors.items() if v.shape[1] > 1),
    )
