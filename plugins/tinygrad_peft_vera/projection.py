"""VeRA's frozen random matrices, one pair for all targets of a step.

A is (r, n) and B is (m, r), with n and m the largest in_features and out_features of the targets.
Smaller targets take the first columns of A and the first rows of B.
"""

import math
from functools import cached_property
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Affine, Init, Module, Parameter
from tinygrad_peft.peft import Site
from tinygrad_peft_vera.config import VeraConfig

__all__ = ["DrawnProjection", "Projection", "StoredProjection", "drawn_uniform", "shared"]


class DrawnProjection(Module):
    """Matrices drawn from a seed at first use: neither parameters nor saved."""

    def __init__(self, config: VeraConfig, n: int, m: int, init: Init) -> None:
        self.key, self.r, self.n, self.m = config.projection_prng_key, config.r, n, m
        self.dtype = init.dtype

    @cached_property
    def matrices(self) -> tuple[Array, Array]:
        """A (r, n) and B (m, r), bit for bit as PEFT draws them from the same key."""
        rng = _generator(self.key)
        a, b = (drawn_uniform(rng, shape) for shape in ((self.r, self.n), (self.m, self.r)))
        return a.astype(self.dtype, copy=False), b.astype(self.dtype, copy=False)


class StoredProjection(Module):
    """Matrices that are saved beside the trained vectors, and loaded with them."""

    def __init__(self, config: VeraConfig, n: int, m: int, init: Init, *, loading: bool) -> None:
        if loading:
            a, b = init.zeros(config.r, n), init.zeros(m, config.r)
        else:
            a, b = DrawnProjection(config, n, m, init).matrices
        self.vera_A = Parameter(a, requires_grad=False)
        self.vera_B = Parameter(b, requires_grad=False)

    @property
    def matrices(self) -> tuple[Array, Array]:
        """A (r, n) and B (m, r)."""
        return self.vera_A.data, self.vera_B.data


Projection: TypeAlias = DrawnProjection | StoredProjection


def shared(config: VeraConfig, site: Site) -> Projection:
    """Return the matrices that all sites of the step share."""

    def stored() -> StoredProjection:
        return StoredProjection(config, *_widest(site), site.init, loading=site.loading)

    def drawn() -> DrawnProjection:
        return DrawnProjection(config, *_widest(site), site.init)

    if config.save_projection:
        return site.common.get(StoredProjection, stored)
    return site.common.get(DrawnProjection, drawn)


def _widest(site: Site) -> tuple[int, int]:
    """Return the largest in_features and out_features of the step's targets."""
    sizes = [(t.in_features, t.out_features) for t in site.targets if isinstance(t, Affine)]
    return max(n for n, _ in sizes), max(m for _, m in sizes)


def drawn_uniform(rng: np.random.RandomState, shape: tuple[int, int]) -> Array:
    """Draw U(±√(6 / columns)) of `shape` in float32, as PyTorch's `uniform_` does on a CPU.

    It takes k, the last 24 bits of each 32 of a Mersenne twister, and computes k 2⁻²⁴ (2 b) - b for
    the bound b with one rounding. (k - 2²³) 2⁻²³ b gives the same, as its other steps are exact.
    """
    bound = np.float32(math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1])))
    bits = rng.randint(0, 2**32, size=shape, dtype=np.uint32)
    bits &= np.uint32(2**24 - 1)
    centred = bits.astype(np.int32)
    centred -= 2**23
    drawn = centred.astype(np.float32)
    drawn *= np.float32(2**-23) * bound
    return drawn


def _generator(key: int) -> np.random.RandomState:
    """Return the Mersenne twister that PyTorch seeds with the last 32 bits of a key."""
    return np.random.RandomState(key % 2**32)  # the only NumPy generator with PyTorch's seeding
