"""The keys and values of the tokens that were generated so far."""

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
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
        return self.store(keys, values, slice(None), batch=keys.shape[0], start=self.length)

    def of(self, rows: IntArray, batch: int) -> "RowsOfCache":
        """Some rows of the cache of a batch, as it is now: they are extended by themselves."""
        return RowsOfCache(self, rows, batch)

    def store(
        self, keys: Tensor, values: Tensor, rows: IntArray | slice, *, batch: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """Put (R, T, K, D) into `rows` of a batch from `start` on; return all of these rows'."""
        if keys.requires_grad or values.requires_grad:
            raise GraphError(
                "a cache is for generation, without gradients: use it within no_grad()"
            )
        end = start + keys.shape[1]
        if end > self.capacity:
            raise ShapeError(f"a cache for {self.capacity} tokens cannot take {end}")
        if self._keys is None or self._values is None:
            shape = (batch, self.capacity, *keys.shape[2:])
            self._keys, self._values = np.empty(shape, keys.dtype), np.empty(shape, keys.dtype)
        self._keys[rows, start:end] = keys.data
        self._values[rows, start:end] = values.data
        self.length = end
        return Tensor(self._keys[rows, :end]), Tensor(self._values[rows, :end])


class RowsOfCache(LayerCache):
    """Some rows of another cache, which has the memory."""

    def __init__(self, whole: LayerCache, rows: IntArray, batch: int) -> None:
        super().__init__(whole.capacity)
        self.length = whole.length
        self.whole, self.rows, self.batch = whole, rows, batch

    def store(
        self, keys: Tensor, values: Tensor, rows: IntArray | slice, *, batch: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """Put (R, T, K, D) into `rows` of these; return all of theirs. `batch` is the whole's."""
        del batch
        own = self.rows[rows]
        extended = self.whole.store(keys, values, own, batch=self.batch, start=start)
        self.length = start + keys.shape[1]
        return extended
