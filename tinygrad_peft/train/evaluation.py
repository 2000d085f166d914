"""Loss and accuracy on examples that the model is not trained on."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinygrad_peft.errors import NumericalError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn import no_dropout
from tinygrad_peft.tensor import no_grad
from tinygrad_peft.train.batching import batches
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.example_checks import check_examples
from tinygrad_peft.train.trainable import Trainable

__all__ = ["Metrics", "evaluate"]

Predictions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metrics:
    """The result of an evaluation, over all examples as if they had been one batch."""

    loss: float  # the mean over labels
    labels: int  # their number: examples of a classifier, tokens of a language model
    accuracy: float | None  # of a classifier: the share of right predictions
    perplexity: float | None  # of a language model: e to the loss
    predictions: Predictions | None  # of a classifier: a class for each example, in their order


def evaluate(model: Trainable, data: EncodedData, *, batch_size: int) -> Metrics:
    """Measure loss and accuracy, or perplexity; leave the model in evaluation mode.

    Plugins' extra losses are left out, so that the loss means the same under all methods.

    Raises:
        NumericalError: a loss that is not finite, as with weights that are NaN.
        DataError: no examples, or some that have nothing to predict.
        ConfigError: a batch size below 1.
        TokenError: ids or labels outside the model.
    """
    classes = check_examples(data, "evaluation", model=model)
    predictions = np.zeros(len(data), np.int64) if classes else None
    total, count = 0.0, 0
    model.eval()
    # Overflows are found by their results. Another thread may switch training mode on meanwhile.
    quiet = np.errstate(over="ignore", divide="ignore", invalid="ignore")
    with no_grad(), no_dropout(), quiet:
        for batch in batches(data, batch_size, seed=None):
            if predictions is None:
                loss = model.loss(batch.input_ids, batch.labels, batch.attention_mask)
            else:
                logits = model(batch.input_ids, batch.attention_mask)  # (B, C)
                loss = F.cross_entropy(logits, batch.labels)
                predictions[batch.index] = logits.data.argmax(axis=-1)
            if not math.isfinite(loss.item()):
                raise NumericalError(f"the evaluation loss is {loss.item()}")
            wanted = batch.num_labels
            total, count = total + loss.item() * wanted, count + wanted
    return _metrics(data, total / count, count, predictions)


def _metrics(
    data: EncodedData, loss: float, count: int, predictions: Predictions | None
) -> Metrics:
    accuracy = perplexity = None
    if predictions is None:
        perplexity = math.inf if loss > 700 else math.exp(loss)  # e⁷¹⁰ overflows
    else:
        accuracy = float(np.mean(predictions == [row.labels for row in data]))
    return Metrics(
        loss=loss,
        labels=count,
        accuracy=accuracy,
        perplexity=perplexity,
        predictions=predictions,
    )
