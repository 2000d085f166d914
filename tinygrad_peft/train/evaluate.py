"""How well a model does on examples that it is not trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import no_grad
from tinygrad_peft.train.batching import Batch, batches
from tinygrad_peft.train.checks import check_examples
from tinygrad_peft.train.data import IGNORED, Encoded
from tinygrad_peft.train.trainable import Trainable

__all__ = ["Metrics", "evaluate", "targets"]

Predictions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metrics:
    """The result of an evaluation, over all examples as if they had been one batch."""

    loss: float  # the mean over labels
    labels: int  # how many there were: examples of a classifier, tokens of a language model
    accuracy: float | None  # of a classifier: the share of right predictions
    perplexity: float | None  # of a language model: e to the loss
    predictions: Predictions | None  # of a classifier: a class for each example, in their order


def evaluate(
    model: Trainable, encoded: Sequence[Encoded], *, batch_size: int, pad_id: int
) -> Metrics:
    """Loss and accuracy, or perplexity; the model is left in evaluation mode.

    Raises:
        DataError: no examples, or some that have nothing to predict.
        ConfigError: a batch size below 1.
        TokenError: ids or labels that the model does not have.
    """
    classes = check_examples(encoded, "evaluation", model=model)
    predictions = np.zeros(len(encoded), np.int64) if classes else None
    total, count = 0.0, 0
    model.eval()
    with no_grad():
        for batch in batches(encoded, batch_size, pad_id=pad_id, seed=None):
            labels, wanted = targets(batch)
            if predictions is None:
                loss = model.loss(batch.input_ids, labels, batch.attention_mask)
            else:
                logits = model(batch.input_ids, batch.attention_mask)  # (B, C)
                loss = F.cross_entropy(logits, labels)
                predictions[batch.index] = logits.data.argmax(axis=-1)
            total, count = total + loss.item() * wanted, count + wanted
    return _metrics(encoded, total / count, count, predictions)


def targets(batch: Batch) -> tuple[npt.NDArray[np.int64], int]:
    """The labels that a model is asked for, (B,) or (B, T), and how many these are.

    The first token of a text is never asked for: nothing stands before it, save under methods that
    put virtual tokens there, and the losses of all methods shall be over the same tokens.
    """
    labels = batch.labels
    if labels.ndim == 2:
        labels = labels.copy()
        labels[:, 0] = IGNORED
    return labels, int(np.count_nonzero(labels != IGNORED))


def _metrics(
    encoded: Sequence[Encoded], loss: float, count: int, predictions: Predictions | None
) -> Metrics:
    accuracy = perplexity = None
    if predictions is None:
        perplexity = math.inf if loss > 700 else math.exp(loss)  # e⁷¹⁰ overflows
    else:
        accuracy = float(np.mean(predictions == [row.labels for row in encoded]))
    return Metrics(
        loss=loss,
        labels=count,
        accuracy=accuracy,
        perplexity=perplexity,
        predictions=predictions,
    )
