"""The keys and values of the tokens that were read so far."""

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import GraphError, ShapeError
from tinygrad_peft.tensor import Tensor

__all__ = ["LayerCache"]


class LayerCache:
    """One layer's keys and values (B, length, K, D), in memory allocated for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Array | None = None
        self._values: Array | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, T, K, D) and return all of them: (B, length, K, D).

        Raises ShapeError past the capacity, and GraphError where a gradient is wanted, since the
        stored arrays pass none on.
        """
        return self.store(keys, values, slice(None), batch=keys.shape[0], start=self.length)

    def of(self, rows: IntArray, batch: int) -> "RowsOfCache":
        """Select rows of a batch's cache, to be extended by themselves from its present length."""
        return RowsOfCache(self, rows, batch)

    def store(
        self, keys: Tensor, values: Tensor, rows: IntArray | slice, *, batch: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """Store (R, T, K, D) in `rows` of a batch from `start` on; return all of theirs."""
        if keys.requires_grad or values.requires_grad:
            raise GraphError(
                "a cache is for generation, without gradients: use it within no_grad()"
            )
        end = start + keys.shape[1]
        if end > self.capacity:
            raise ShapeError(f"cache: expected at most {self.capacity} tokens, got {end}")
        if self._keys is None or self._values is None:
            shape = (batch, self.capacity, *keys.shape[2:])
            self._keys, self._values = np.empty(shape, keys.dtype), np.empty(shape, keys.dtype)
        self._keys[rows, start:end] = keys.data
        self._values[rows, start:end] = values.data
        self.length = end
        return Tensor(self._keys[rows, :end]), Tensor(self._values[rows, :end])


class RowsOfCache(LayerCache):
    """Rows of another cache, which holds the memory."""

    def __init__(self, whole: LayerCache, rows: IntArray, batch: int) -> None:
        super().__init__(whole.capacity)
        self.length = whole.length
        self.whole, self.rows, self.batch = whole, rows, batch

    def store(
        self, keys: Tensor, values: Tensor, rows: IntArray | slice, *, batch: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """Store (R, T, K, D) in `rows` of these; return all that they have. `batch` is ignored."""
        del batch
        own = self.rows[rows]
        extended = self.whole.store(keys, values, own, batch=self.batch, start=start)
        self.length = start + keys.shape[1]
        return extended
