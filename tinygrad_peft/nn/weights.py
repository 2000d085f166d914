"""The weight of an affine layer, however the layer stores it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn.layers import Linear
from tinygrad_peft.nn.module import Module
from tinygrad_peft.nn.seams import Affine
from tinygrad_peft.tensor import Tensor, no_grad

__all__ = ["DenseWeight", "times_weight", "weight_of"]


@runtime_checkable
class DenseWeight(Protocol):
    """A layer that can make its weight W (out, in): a plain one, or one that stores it packed."""

    def dense_weight(self) -> Array: ...


def weight_of(affine: Affine) -> Array:
    """W (out, in) of x Wᵀ + b, for any affine layer: plain, packed, or wrapped by a method.

    A plain layer's own array, not a copy; otherwise a new one. Where the layer has no
    `dense_weight`, W is read off its outputs for the unit vectors, without dropout.
    """
    if isinstance(affine, DenseWeight):
        return affine.dense_weight()
    weights = affine.parameters() if isinstance(affine, Module) else ()
    dtype = next((p.dtype for p in weights), np.dtype(np.float32))
    return times_weight(affine, np.eye(affine.in_features, dtype=dtype)).T


def times_weight(affine: Affine, x: Array) -> Array:
    """x Wᵀ without the bias, and without dropout: (n, in) -> (n, out). W is not built."""
    if isinstance(affine, Linear):
        return x @ affine.weight.data.T
    with _evaluating(affine), no_grad():
        return affine(Tensor(x)).data - affine(Tensor(np.zeros_like(x[:1]))).data


@contextmanager
def _evaluating(affine: Affine) -> Iterator[None]:
    """Switch training mode off in the layer within the block."""
    modules = [m for _, m in affine.named_modules()] if isinstance(affine, Module) else []
    before = [m.training for m in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
