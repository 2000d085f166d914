"""Weights that are NaN or infinite, found and named."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError, NonFiniteWarning, told

__all__ = ["check_finite", "nonfinite"]


def nonfinite(named: Iterable[tuple[str, Array]]) -> list[str]:
    """Describe the arrays that hold NaN or infinity, by their names.

    >>> nonfinite([("a", np.ones(3)), ("b", np.array([1.0, np.nan, np.inf]))])
    ['b: 1 NaN and 1 infinite of 3 numbers']
    """
    return [f"{name}: {_counts(array)}" for name, array in named if not np.isfinite(array).all()]


def _counts(array: Array) -> str:
    kinds = {"NaN": np.isnan(array), "infinite": np.isinf(array)}
    found = [f"{int(mask.sum()):,} {kind}" for kind, mask in kinds.items() if mask.any()]
    return f"{' and '.join(found)} of {array.size:,} numbers"


def check_finite(path: Path, named: Iterable[tuple[str, Array]], *, allowed: bool) -> None:
    """Raise CheckpointError for weights that hold NaN or infinity, or warn if they are `allowed`.

    `path` is the file or folder that they were read from.
    """
    problems = nonfinite(named)
    if not problems:
        return
    message = f"{path}: expected finite weights, got:{told(problems)}"
    if not allowed:
        how = "allow_nonfinite=True loads them, and so do commands that have --allow-nonfinite"
        raise CheckpointError(f"{message}\n{how}")
    warnings.warn(message, NonFiniteWarning, stacklevel=3)
