"""Batches of examples of similar length, so that little of them is padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft.train.labels import LabelArray, count_labels, label_array, padded

__all__ = ["Batch", "batches", "make_batch"]

BUCKET = 50  # batches that are sorted by length together: larger pads less and shuffles less


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B examples padded on the right to the longest of them, T tokens."""

    input_ids: npt.NDArray[np.int64]  # (B, T)
    attention_mask: npt.NDArray[np.bool_]  # (B, T), True at tokens
    labels: LabelArray  # (B,) classes, or (B, T) with IGNORED at padding and at the first token
    index: npt.NDArray[np.int64]  # (B,) places of the examples in their data set

    @property
    def num_labels(self) -> int:
        """The number of labels that the loss is over."""
        return count_labels(self.labels)

    @property
    def num_tokens(self) -> int:
        """The number of tokens without padding."""
        return int(self.attention_mask.sum())


def batches(data: EncodedData, batch_size: int, *, seed: int | None, epoch: int = 0) -> list[Batch]:
    """Put every example into one batch; the same seed and epoch give the same batches.

    `seed=None` is for evaluation: ordered by length, longest first, so that a batch too large for
    memory fails at once. Raises ConfigError for a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
    lengths = np.array([len(row.input_ids) for row in data], dtype=np.int64)
    if seed is None:
        groups = _chunks(np.argsort(-lengths, kind="stable"), batch_size)
    else:
        groups = _shuffled_groups(lengths, batch_size, np.random.default_rng((seed, epoch)))
    return [_batch([data[place] for place in group], data.pad_id, group) for group in groups]


def make_batch(data: EncodedData) -> Batch:
    """Put all examples of a data set into one batch, in their order.

    Raises ConfigError for a data set without examples.

    >>> data = EncodedData([Encoded((5, 6), 0), Encoded((7,), 1)], pad_id=3)
    >>> make_batch(data).input_ids.tolist()
    [[5, 6], [7, 3]]
    """
    if not data:
        raise ConfigError("a batch: expected at least one example, got none")
    return _batch(list(data), data.pad_id, np.arange(len(data)))


def _shuffled_groups(
    lengths: npt.NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    groups: list[npt.NDArray[np.int64]] = []
    for bucket in _chunks(rng.permutation(len(lengths)), batch_size * BUCKET):
        by_length = bucket[np.argsort(lengths[bucket], kind="stable")]
        groups += _chunks(by_length, batch_size)
    return [groups[place] for place in rng.permutation(len(groups))]


def _chunks(order: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _batch(rows: Sequence[Encoded], pad_id: int, index: npt.NDArray[np.int64]) -> Batch:
    lengths = np.array([len(row.input_ids) for row in rows])  # (B,)
    return Batch(
        input_ids=padded([row.input_ids for row in rows], pad_id),
        attention_mask=np.arange(lengths.max()) < lengths[:, None],
        labels=label_array([row.labels for row in rows]),
        index=index.astype(np.int64, copy=False),
    )
