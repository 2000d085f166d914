"""What an affine layer does to vectors, however it stores its weight."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Affine, Linear, Module
from tinygrad_peft.tensor import Tensor, no_grad

__all__ = ["images", "weight_of"]


def weight_of(base: Affine, dtype: np.dtype[np.floating]) -> Array:
    """W (out, in) of x Wᵀ + b."""
    if isinstance(base, Linear):
        return base.weight.data
    return images(base, np.eye(base.in_features, dtype=dtype)).T


def images(base: Affine, x: Array) -> Array:
    """x Wᵀ without the bias, and without dropout: (n, in) -> (n, out)."""
    if isinstance(base, Linear):
        return x @ base.weight.data.T
    with _evaluating(base), no_grad():
        return base(Tensor(x)).data - base(Tensor(np.zeros_like(x[:1]))).data


@contextmanager
def _evaluating(base: Affine) -> Iterator[None]:
    """Within the block nothing in the layer is dropped."""
    modules = [m for _, m in base.named_modules()] if isinstance(base, Module) else []
    before = [m.training for m in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
