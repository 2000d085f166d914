"""What a frozen model knows already: a linear head on its pooled features."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.nn import AdamW, Init, Linear, Transformer
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft.train.batching import batches
from tinygrad_peft.train.checks import check_examples
from tinygrad_peft.train.data import Encoded

__all__ = ["Probed", "pooled_features", "probe"]

# Over all features at once a step costs next to nothing, and these reach the optimum.
STEPS, LR = 300, 3e-2
# The summed loss is this half times |W|² higher: a prior that weighs less the more examples there
# are. A few thousand of them overfit some hundred features otherwise.
PRIOR = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """How the frozen model with a head of its own did."""

    accuracy: float  # on the evaluation set
    loss: float
    trainable: int  # parameters: the head's
    seconds: float  # to make the features and to fit the head


def probe(
    model: Transformer,
    train_set: Sequence[Encoded],
    eval_set: Sequence[Encoded],
    *,
    batch_size: int,
    pad_id: int,
) -> Probed:
    """Fit a linear head to what the model makes of the training set, as the model is.

    The model's own head is neither used nor changed, and only its size matters. Two equal calls
    give equal bits.

    Raises:
        ConfigError: the model is no classifier.
        DataError: examples that cannot be used.
    """
    if model.classifier is None:
        raise ConfigError("a probe needs a classifier: give the model a head with with_classifier")
    for examples, purpose in ((train_set, "training"), (eval_set, "evaluation")):
        check_examples(examples, purpose, classes=True)
    started = time.perf_counter()
    features = pooled_features(model, train_set, batch_size=batch_size, pad_id=pad_id)
    head = _fitted(features, _labels(train_set), model.config.num_labels)
    seconds = time.perf_counter() - started
    labels = _labels(eval_set)
    with no_grad():
        x = Tensor(pooled_features(model, eval_set, batch_size=batch_size, pad_id=pad_id))
        logits = head(x)  # (N, C)
        loss = F.cross_entropy(logits, labels).item()
    return Probed(
        accuracy=float(np.mean(logits.data.argmax(axis=1) == labels)),
        loss=loss,
        trainable=count_elements(head.parameters()),
        seconds=seconds,
    )


def pooled_features(
    model: Transformer, encoded: Sequence[Encoded], *, batch_size: int, pad_id: int
) -> Array:
    """What the model gives its head for each example, in their order: (N, D)."""
    made = batches(encoded, batch_size, pad_id=pad_id, seed=None)
    model.eval()
    with no_grad():
        features = [model.pooled(batch.input_ids, batch.attention_mask).data for batch in made]
    order = np.concatenate([batch.index for batch in made])
    return np.concatenate(features)[np.argsort(order)]


def _fitted(features: Array, labels: IntArray, classes: int) -> Linear:
    """The head (D -> C) that fits features (N, D) best, started from zero."""
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


def _labels(encoded: Sequence[Encoded]) -> IntArray:
    return np.array([row.labels for row in encoded])
