"""A linear probe: a head on the pooled features of a frozen model."""

import time
from dataclasses import dataclass

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.nn import AdamW, Init, Linear, Transformer
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.heads import require_one_class
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft.train.batching import batches
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.example_checks import check_examples
from tinygrad_peft.train.labels import class_array

__all__ = ["Probed", "pooled_features", "probe"]

# A step over all features at once costs next to nothing, and these reach the optimum.
STEPS, LR = 300, 3e-2
# The summed loss grows by half of this times |W|²: a prior that weighs less with more examples.
# Without it, a few thousand examples overfit some hundred features.
PRIOR = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """The result of a probe."""

    accuracy: float  # on the evaluation set
    loss: float
    trainable: int  # the head's parameters
    seconds: float  # to make the features and to fit the head


def probe(
    model: Transformer,
    train_set: EncodedData,
    eval_set: EncodedData,
    *,
    batch_size: int,
) -> Probed:
    """Fit a linear head to the frozen model's features of the training set.

    The model's own head gives the number of classes, and is neither used nor changed. Two equal
    calls give equal bits.

    Raises:
        ConfigError: the model has no classification head, or one of another kind.
        DataError: examples that cannot be used.
    """
    if model.classifier is None:
        raise ConfigError("a probe: expected a model with a classification head (with_classifier)")
    require_one_class(model.config)
    for examples, purpose in ((train_set, "training"), (eval_set, "evaluation")):
        check_examples(examples, purpose, classes=True)
    started = time.perf_counter()
    features = pooled_features(model, train_set, batch_size=batch_size)
    head = _fitted(features, _classes(train_set), model.config.num_labels)
    seconds = time.perf_counter() - started
    labels = _classes(eval_set)
    with no_grad():
        x = Tensor(pooled_features(model, eval_set, batch_size=batch_size))
        logits = head(x)  # (N, C)
        loss = F.cross_entropy(logits, labels).item()
    return Probed(
        accuracy=float(np.mean(logits.data.argmax(axis=1) == labels)),
        loss=loss,
        trainable=count_elements(head.parameters()),
        seconds=seconds,
    )


def pooled_features(model: Transformer, data: EncodedData, *, batch_size: int) -> Array:
    """Compute the head's input for each example, in their order: (N, D)."""
    made = batches(data, batch_size, seed=None)
    model.eval()
    with no_grad():
        features = [model.pooled(batch.input_ids, batch.attention_mask).data for batch in made]
    order = np.concatenate([batch.index for batch in made])
    return np.concatenate(features)[np.argsort(order)]


def _fitted(features: Array, labels: IntArray, classes: int) -> Linear:
    """Fit a head (D -> C), started from zero, to features (N, D)."""
    x = Tensor(features)
    head = Linear(features.shape[1], classes, init=Init(0, features.dtype))
    head.weight.data[...] = 0
    optimizer = AdamW(head.parameters(), lr=LR, weight_decay=0)
    for _ in range(STEPS):
        penalty = (head.weight * head.weight).sum() * (PRIOR / 2 / len(labels))
        (F.cross_entropy(head(x), labels) + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    return head


def _classes(data: EncodedData) -> IntArray:
    return class_array([row.labels for row in data])
