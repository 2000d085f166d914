"""The weight of an affine layer, however the layer stores it."""

from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn.layers import Linear
from tinygrad_peft.nn.module import Module
from tinygrad_peft.nn.seams import Affine
from tinygrad_peft.tensor import Tensor, no_grad

__all__ = ["DenseWeight", "times_weight", "weight_of"]

M = TypeVar("M", bound=Module)


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
    layer = _evaluating(affine) if isinstance(affine, Module) else affine
    with no_grad():
        return layer(Tensor(x)).data - layer(Tensor(np.zeros_like(x[:1]))).data


def _evaluating(module: M) -> M:
    """Return the module in evaluation mode: itself, or a copy that shares all weights.

    Its own mode stays as it is, since another thread may be running it.
    """
    if not any(each.training for _, each in module.named_modules()):
        return module
    twin = module.with_children({name: _evaluating(child) for name, child in module.children()})
    twin.training = False
    return twin
