"""Labels of examples and of batches.

A text to classify has one label, its class. A text to continue has one label per token, which
stands at the token that it names: `Transformer.loss` compares the logits of one position with the
label of the next. IGNORED marks the tokens that are not learned.

The first token of a text is never learned. Nothing stands before it, except under methods that put
virtual tokens there, and the losses of all methods should be over the same tokens.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tinygrad_peft.ops.loss import IGNORE_INDEX

__all__ = [
    "IGNORED",
    "LabelArray",
    "Labels",
    "class_array",
    "completion_labels",
    "count_labels",
    "has_labels",
    "label_array",
    "padded",
]

IGNORED = IGNORE_INDEX  # the label of a token that the loss leaves out

Labels: TypeAlias = int | tuple[int, ...]
LabelArray: TypeAlias = npt.NDArray[np.int64]


def completion_labels(prompt: Sequence[int], completion: Sequence[int]) -> tuple[int, ...]:
    """Label the tokens of a completion, and ignore those of the prompt before it."""
    return (IGNORED,) * len(prompt) + tuple(completion)


def has_labels(labels: tuple[int, ...]) -> bool:
    """Return True if a token past the first has a label."""
    return any(label != IGNORED for label in labels[1:])


def label_array(rows: Sequence[Labels]) -> LabelArray:
    """Collect a batch's labels: (B,) classes, or (B, T) with IGNORED at padding and token 0."""
    sequences = [row for row in rows if isinstance(row, tuple)]
    if not sequences:
        return class_array(rows)
    labels = padded(sequences, IGNORED)
    labels[:, 0] = IGNORED
    return labels


def class_array(rows: Sequence[Labels]) -> LabelArray:
    """Collect the classes of texts: (N,)."""
    return np.array(rows, dtype=np.int64)


def count_labels(labels: LabelArray) -> int:
    """Count the labels that the loss is over."""
    return int(np.count_nonzero(labels != IGNORED))


def padded(rows: Sequence[tuple[int, ...]], fill: int) -> npt.NDArray[np.int64]:
    """Pad rows on the right to the longest: (B, T)."""
    array = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for target, row in zip(array, rows, strict=True):
        target[: len(row)] = row
    return array
