"""Learning-rate schedules: multipliers of the learning rate, by step, counted from 0.

All begin with a linear warm-up of w steps: s / w for s < w, so the very first step has rate 0,
and give what the schedules of the same names in Hugging Face transformers give.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Schedule", "constant", "cosine_decay", "linear_decay"]

Schedule: TypeAlias = Callable[[int], float]


def constant(warmup: int = 0) -> Schedule:
    """1 after the warm-up."""
    return lambda step: min(1.0, step / max(1, warmup)) if warmup else 1.0


def linear_decay(total: int, warmup: int = 0) -> Schedule:
    """(total - s) / (total - w) after the warm-up, and 0 from step `total` on."""

    def multiplier(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (total - step) / max(1, total - warmup))

    return multiplier


def cosine_decay(total: int, warmup: int = 0) -> Schedule:
    """(1 + cos(π (s - w) / (total - w))) / 2 after the warm-up, and 0 from step `total` on."""

    def multiplier(step: int) -> float:
        if step < warmup:
            return step / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return multiplier
