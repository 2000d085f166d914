"""What the methods share: the array type, rows of a batch, and checks of sizes."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
T = TypeVar("T")


def rows(x: Array) -> Array:
    """The same numbers as a matrix: (..., d) -> (N, d)."""
    return x.reshape(-1, x.shape[-1])


def generator(rng: np.random.Generator | None) -> np.random.Generator:
    """The caller's generator, or one that starts alike in every run."""
    return np.random.default_rng(0) if rng is None else rng


def normal(rng: np.random.Generator, *shape: int, std: float = 0.02) -> Array:
    """N(0, std²); 0.02 is how most transformers start."""
    return std * rng.standard_normal(shape)


def remembered(cache: T | None) -> T:
    """What forward kept for backward."""
    if cache is None:
        raise RuntimeError("backward needs a forward before it")
    return cache


def check_sizes(**sizes: int) -> None:
    """Raise ValueError unless every size is at least 1."""
    wrong = [f"{name}={size}" for name, size in sizes.items() if size < 1]
    if wrong:
        raise ValueError(f"expected at least 1, got {', '.join(wrong)}")


def check_shape(name: str, array: Array, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless an array has the shape that it must have."""
    if array.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {array.shape}")


def check_width(name: str, array: Array, width: int) -> None:
    """Raise ValueError unless the last axis of an array is as wide as it must be."""
    if array.ndim == 0 or array.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (..., {width}), got {array.shape}")


def check_heads(d_model: int, heads: int) -> None:
    """Raise ValueError unless the heads divide the model's width."""
    if d_model % heads:
        raise ValueError(f"{heads} heads do not divide a width of {d_model}")


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is none of the known ones, with the nearest."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}, expected one of {', '.join(names)}{meant}")
