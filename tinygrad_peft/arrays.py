"""Array aliases, the dtype policy, and helpers that every op uses."""

import ctypes
import math
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "AnyArray",
    "Array",
    "BoolArray",
    "IntArray",
    "Shape",
    "as_float",
    "block_rows",
    "blocks",
    "keep_freed_memory",
    "rows",
    "unbroadcast",
]

Array: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
AnyArray: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

# Half of a 512 KiB second-level cache in float32, so that a chain of element-wise steps over one
# block reads and writes the cache and not the memory.
BLOCK_ELEMENTS = 65_536

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers of these settings, from malloc.h


def as_float(data: npt.ArrayLike) -> Array:
    """Convert to a float array: float64 arrays stay as they are, all else becomes float32.

    Raises TypeError for a dtype that is not real.
    """
    array = np.asarray(data)
    if isinstance(data, np.ndarray | np.generic) and array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected a real dtype, got {array.dtype}")
    return array.astype(np.float32)


def unbroadcast(grad: Array, shape: Shape) -> Array:
    """Sum `grad` over the axes along which an array of `shape` was broadcast to `grad.shape`."""
    if grad.shape == shape:
        return grad
    extra = grad.ndim - len(shape)
    stretched = (i + extra for i, n in enumerate(shape) if n == 1 and grad.shape[i + extra] != 1)
    total: Array = grad.sum(axis=(*range(extra), *stretched), keepdims=True)
    return total.reshape(shape)


def rows(x: Array) -> Array:
    """Reshape `x` (..., N) to a matrix (rows, N), sizes of zero included."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def block_rows(count: int, width: int) -> int:
    """Count the rows of `width` elements that fit the second-level cache: 1 to `count`."""
    return max(1, min(count, BLOCK_ELEMENTS // max(1, width)))


def blocks(count: int, width: int) -> Iterator[slice]:
    """Cut `count` rows into slices of `block_rows` rows."""
    step = block_rows(count, width)
    return (slice(start, min(count, start + step)) for start in range(0, count, step))


def keep_freed_memory() -> None:
    """Keep the memory that a training step frees for the next one.

    By default glibc returns large freed blocks to the system, and the next arrays cost a page
    fault every 4 KiB: a good part of the time outside of matrix products. The setting holds for
    the whole process and does not change its peak. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**25)  # glibc's maximum
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
