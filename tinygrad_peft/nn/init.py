"""The values of new weights."""

import math
from functools import cached_property

import numpy as np

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import ConfigError

__all__ = ["Init", "Skeleton", "is_hollow"]


class Init:
    """Weights of one dtype, drawn from one generator: the same seed gives the same model."""

    def __init__(
        self,
        seed: int | tuple[int, ...] | np.random.Generator = 0,
        dtype: type[np.floating] | np.dtype[np.floating] = np.float32,
    ) -> None:
        self._seed = seed
        self.dtype: np.dtype[np.floating] = np.dtype(dtype)

    @cached_property
    def rng(self) -> np.random.Generator:
        """The generator, made at the first draw: many places draw nothing."""
        return np.random.default_rng(self._seed)

    def zeros(self, *shape: int) -> Array:
        """Fill with 0."""
        return np.zeros(shape, self.dtype)

    def ones(self, *shape: int) -> Array:
        """Fill with 1."""
        return np.ones(shape, self.dtype)

    def constant(self, *shape: int, value: float) -> Array:
        """Fill with one value."""
        return np.full(shape, value, self.dtype)

    def normal(self, *shape: int, std: float) -> Array:
        """N(0, std²)."""
        return (self.rng.standard_normal(shape) * std).astype(self.dtype)

    def truncated_normal(self, *shape: int, std: float) -> Array:
        """N(0, std²) within two deviations: values outside are drawn again."""
        drawn = self.rng.standard_normal(shape)
        while (outside := np.abs(drawn) > 2).any():
            drawn[outside] = self.rng.standard_normal(int(outside.sum()))
        return (std * drawn).astype(self.dtype)

    def uniform(self, *shape: int, bound: float) -> Array:
        """U(-bound, bound)."""
        return self.rng.uniform(-bound, bound, shape).astype(self.dtype)

    def kaiming_uniform(self, *shape: int) -> Array:
        """U(±1/√in) for a weight (out, in): He et al. 2015 with a = √5, as PyTorch has it."""
        return self.uniform(*shape, bound=1 / math.sqrt(shape[1]) if shape[1] else 0.0)


class Skeleton(Init):
    """Arrays that have a shape and take no memory: every element is the same zero.

    A model built with it can be counted, whatever its size, and waits for a checkpoint's arrays.
    """

    def zeros(self, *shape: int) -> Array:
        """Broadcast a read-only zero to the shape."""
        return self._hollow(shape)

    def ones(self, *shape: int) -> Array:
        """Broadcast a read-only zero to the shape."""
        return self._hollow(shape)

    def constant(self, *shape: int, value: float) -> Array:  # noqa: ARG002 - Init's signature
        """Broadcast a read-only zero to the shape."""
        return self._hollow(shape)

    def normal(self, *shape: int, std: float) -> Array:  # noqa: ARG002 - Init's signature
        """Broadcast a read-only zero to the shape."""
        return self._hollow(shape)

    def truncated_normal(self, *shape: int, std: float) -> Array:  # noqa: ARG002 - as Init's
        """Broadcast a read-only zero to the shape."""
        return self._hollow(shape)

    def uniform(self, *shape: int, bound: float) -> Array:  # noqa: ARG002 - Init's signature
        """Broadcast a read-only zero to the shape."""
        return self._hollow(shape)

    def _hollow(self, shape: Shape) -> Array:
        try:
            return np.broadcast_to(np.zeros((), self.dtype), shape)
        except ValueError:
            raise ConfigError(f"invalid shape of an array: {shape}") from None


def is_hollow(array: Array) -> bool:
    """Return True for an array of a `Skeleton`, whose elements are all one."""
    return array.ndim > 0 and not any(array.strides)
