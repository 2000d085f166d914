"""Batches of examples of like length, so that little of them is padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.train.data import IGNORED, Encoded

BUCKET = 50  # batches that are sorted by length together: larger pads less and shuffles less


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B examples padded on the right to the longest of them, T tokens."""

    input_ids: npt.NDArray[np.int64]  # (B, T)
    attention_mask: npt.NDArray[np.bool_]  # (B, T), True at tokens
    labels: npt.NDArray[np.int64]  # (B,) classes, or (B, T) with IGNORED at padding
    index: npt.NDArray[np.int64]  # (B,) places in the sequence that the batches were made of


def batches(
    encoded: Sequence[Encoded],
    batch_size: int,
    *,
    pad_id: int,
    seed: int | None,
    epoch: int = 0,
) -> list[Batch]:
    """Every example once; the same seed and epoch give the same batches.

    `seed=None` is for evaluation: ordered by length, longest first, so that a batch that does not
    fit into memory fails at once. Raises ConfigError for a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
    lengths = np.array([len(row.input_ids) for row in encoded], dtype=np.int64)
    if seed is None:
        groups = _chunks(np.argsort(-lengths, kind="stable"), batch_size)
    else:
        groups = _shuffled_groups(lengths, batch_size, np.random.default_rng((seed, epoch)))
    return [_batch(encoded, group, pad_id) for group in groups]


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


def _batch(encoded: Sequence[Encoded], index: npt.NDArray[np.int64], pad_id: int) -> Batch:
    rows = [encoded[place] for place in index]
    lengths = np.array([len(row.input_ids) for row in rows])  # (B,)
    return Batch(
        input_ids=_padded([row.input_ids for row in rows], pad_id),
        attention_mask=np.arange(lengths.max()) < lengths[:, None],
        labels=_labels([row.labels for row in rows]),
        index=index.astype(np.int64, copy=False),
    )


def _labels(labels: Sequence[int | tuple[int, ...]]) -> npt.NDArray[np.int64]:
    sequences = [row for row in labels if isinstance(row, tuple)]
    if sequences:
        return _padded(sequences, IGNORED)
    return np.array(labels, dtype=np.int64)


def _padded(rows: Sequence[tuple[int, ...]], fill: int) -> npt.NDArray[np.int64]:
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)  # (B, T)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
