"""Ops that rearrange values, and reductions."""

import math
from types import EllipsisType
from typing import TypeAlias, cast

import numpy as np

from tinygrad_peft.arrays import AnyArray, Array, IntArray, Shape, unbroadcast
from tinygrad_peft.ops._result import Pullback, Result

__all__ = [
    "Index",
    "broadcast_to",
    "concatenate",
    "getitem",
    "max",
    "mean",
    "reshape",
    "sum",
    "transpose",
    "where",
]

_Key: TypeAlias = int | slice | EllipsisType | AnyArray | list[int] | None
Index: TypeAlias = _Key | tuple[_Key, ...]
Axis: TypeAlias = int | tuple[int, ...] | None


def reshape(a: Array, *, shape: Shape) -> Result:
    """Reshape without changing the values."""
    before = a.shape
    return a.reshape(shape), (lambda g: g.reshape(before),)


def transpose(a: Array, *, axes: tuple[int, ...] | None = None) -> Result:
    """Reorder the axes; by default, reverse them."""
    order = tuple(range(a.ndim))[::-1] if axes is None else axes
    back = tuple(int(i) for i in np.argsort([axis % a.ndim for axis in order]))
    return a.transpose(order), (lambda g: g.transpose(back),)


def broadcast_to(a: Array, *, shape: Shape) -> Result:
    """Repeat along new and size-one axes."""
    before = a.shape
    return np.broadcast_to(a, shape), (lambda g: unbroadcast(g, before),)


def concatenate(*arrays: Array, axis: int = 0) -> Result:
    """Join the arrays along one axis."""
    ends = np.cumsum([a.shape[axis] for a in arrays])

    def part(start: int, end: int) -> Pullback:
        return lambda g: np.take(g, np.arange(start, end), axis=axis)

    pullbacks = tuple(
        part(int(e) - a.shape[axis], int(e)) for a, e in zip(arrays, ends, strict=True)
    )
    return np.concatenate(arrays, axis=axis), pullbacks


def getitem(a: Array, *, index: Index) -> Result:
    """a[index], with slices, integers, and integer or boolean arrays; the gradient scatters."""
    basic = all(
        k is None or isinstance(k, int | slice | EllipsisType)
        for k in (index if isinstance(index, tuple) else (index,))
    )

    shape = a.shape
    # np.add.at is slow, and needed only where an entry may be picked twice.
    once = basic or (
        isinstance(index, np.ndarray)
        and index.ndim == 1
        and index.dtype.kind in "iu"
        and np.unique(index % (len(a) or 1)).size == index.size
    )

    def pullback(g: Array) -> Array:
        full = np.zeros(shape, g.dtype)
        if once:
            full[index] = g
        else:
            np.add.at(full, cast("IntArray", index), g)
        return full

    return a[index], (pullback,)


def where(a: Array, b: Array, *, condition: AnyArray) -> Result:
    """a where the condition holds, else b."""
    left, right = a.shape, b.shape
    return np.where(condition, a, b), (
        lambda g: unbroadcast(np.where(condition, g, 0), left),
        lambda g: unbroadcast(np.where(condition, 0, g), right),
    )


def sum(a: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:  # noqa: A001 - NumPy's name
    """Σ a over the axes."""
    shape = a.shape
    total = a.sum(axis=axis, keepdims=True) if keepdims else np.asarray(a.sum(axis=axis))
    return total, (lambda g: np.broadcast_to(_with_axes(g, len(shape), axis), shape),)


def mean(a: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """Σ a / n over the axes."""
    total, (spread,) = sum(a, axis=axis, keepdims=keepdims)
    count = a.size if axis is None else math.prod(a.shape[i] for i in _axes(axis))
    return np.asarray(total / count, a.dtype), (lambda g: spread(g / count),)


def max(a: Array, *, axis: int, keepdims: bool = False) -> Result:  # noqa: A001 - NumPy's name
    """max a along one axis; the gradient goes to the first of equals."""
    shape, where_max = a.shape, np.expand_dims(a.argmax(axis=axis), axis)

    def pullback(g: Array) -> Array:
        full = np.zeros(shape, g.dtype)
        np.put_along_axis(full, where_max, _with_axes(g, len(shape), axis), axis)
        return full

    largest = a.max(axis=axis, keepdims=True) if keepdims else np.asarray(a.max(axis=axis))
    return largest, (pullback,)


def _axes(axis: int | tuple[int, ...]) -> tuple[int, ...]:
    return axis if isinstance(axis, tuple) else (axis,)


def _with_axes(g: Array, ndim: int, axis: Axis) -> Array:
    """Restore the reduced axes of `g` at size one."""
    if g.ndim == ndim or axis is None:
        return g
    return np.expand_dims(g, _axes(axis))
