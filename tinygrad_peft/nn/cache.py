"""The keys and values of the tokens that were generated so far."""

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import GraphError, ShapeError
from tinygrad_peft.tensor import Tensor

__all__ = ["LayerCache"]


class LayerCache:
    """One layer's keys and values (B, length, K, D), in memory taken once for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Array | None = None
        self._values: Array | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, T, K, D) and return all of them: (B, length, K, D).

        Raises ShapeError past the capacity, and GraphError where a gradient is wanted, since none
        goes back through what is stored.
        """
        if keys.requires_grad or values.requires_grad:
            raise GraphError(
                "a cache is for generation, without gradients: use it within no_grad()"
            )
        end = self.length + keys.shape[1]
        if end > self.capacity:
            raise ShapeError(f"a cache for {self.capacity} tokens cannot take {end}")
        if self._keys is None or self._values is None:
            shape = (keys.shape[0], self.capacity, *keys.shape[2:])
            self._keys, self._values = np.empty(shape, keys.dtype), np.empty(shape, keys.dtype)
        self._keys[:, self.length : end] = keys.data
        self._values[:, self.length : end] = values.data
        self.length = end
        return Tensor(self._keys[:, :end]), Tensor(self._values[:, :end])
