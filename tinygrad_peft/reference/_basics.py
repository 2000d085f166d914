"""Types, random draws and checks that the methods share."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
T = TypeVar("T")


class Draws(Protocol):
    """Source of random numbers: a Generator, or the module `np.random` with its global one."""

    def standard_normal(self, size: tuple[int, ...], /) -> Array: ...
    def uniform(self, low: float, high: float, size: tuple[int, ...], /) -> Array: ...
    def choice(self, count: int, size: int, /) -> npt.NDArray[np.integer[Any]]: ...


def rows(x: Array) -> Array:
    """Flatten a batch to a matrix: (..., d) -> (N, d)."""
    return x.reshape(-1, x.shape[-1])


def over_batch(x: Array, kept: int) -> Array:
    """Sum over all axes but the last `kept`."""
    total: Array = x.sum(axis=tuple(range(x.ndim - kept)))
    return total


def generator(rng: np.random.Generator | None) -> Draws:
    """Return `rng`, or NumPy's global generator, which `np.random.seed` starts."""
    return np.random if rng is None else rng


def normal(draws: Draws, *shape: int, std: float) -> Array:
    """Draw from N(0, std²)."""
    return std * draws.standard_normal(shape)


def remembered(cache: T | None) -> T:
    """Return the arrays that forward kept for backward. Raises RuntimeError if there are none."""
    if cache is None:
        raise RuntimeError("backward needs a forward before it")
    return cache


def check_sizes(**sizes: int) -> None:
    """Raise ValueError unless every size is at least 1."""
    wrong = [f"{name}={size}" for name, size in sizes.items() if size < 1]
    if wrong:
        raise ValueError(f"expected at least 1, got {', '.join(wrong)}")


def check_shape(name: str, array: Array, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless an array has the expected shape."""
    if array.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {array.shape}")


def check_width(name: str, array: Array, width: int) -> None:
    """Raise ValueError unless the last axis of an array has the expected width."""
    if array.ndim == 0 or array.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (..., {width}), got {array.shape}")


def check_tokens(name: str, x: Array, width: int) -> None:
    """Raise ValueError unless an array is tokens of the expected width, with or without a batch."""
    if x.ndim < 2 or x.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (..., T, {width}), got {x.shape}")


def check_heads(d_model: int, heads: int) -> None:
    """Raise ValueError unless the heads divide the width of the model."""
    if d_model % heads:
        raise ValueError(f"{heads} heads do not divide a width of {d_model}")


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for an unknown name, with the nearest known one."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}, expected one of {', '.join(names)}{meant}")
