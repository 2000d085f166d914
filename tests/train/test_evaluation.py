"""Evaluation gives what all examples one by one would give."""

import math

import numpy as np
import pytest

from tests.train.toys import classifier, countings, language_model, needles
from tinygrad_peft.errors import DataError, NumericalError, TokenError
from tinygrad_peft.nn import Transformer
from tinygrad_peft.tensor import no_grad
from tinygrad_peft.train import evaluate
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft.train.labels import IGNORED


def logits_one_by_one(model: Transformer, examples: EncodedData) -> list[np.ndarray]:
    with no_grad():
        return [model(np.array([row.input_ids])).data[0] for row in examples]


def negative_log_likelihood(logits: np.ndarray, label: int) -> float:
    return float(np.log(np.exp(logits).sum()) - logits[label])


def test_a_classifier_is_measured_by_loss_accuracy_and_predictions() -> None:
    model, examples = classifier(dtype=np.float64), needles(23)
    metrics = evaluate(model, examples, batch_size=4)
    alone = logits_one_by_one(model, examples)
    labels = [row.labels for row in examples if isinstance(row.labels, int)]
    losses = [negative_log_likelihood(z, y) for z, y in zip(alone, labels, strict=True)]
    assert metrics.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert metrics.labels == 23
    assert metrics.predictions is not None
    assert list(metrics.predictions) == [z.argmax() for z in alone]
    assert metrics.accuracy == np.mean(metrics.predictions == labels)
    assert metrics.perplexity is None


def test_a_language_model_is_measured_by_loss_per_token() -> None:
    model, (first, *rest) = language_model(dtype=np.float64), countings(11)
    ids = first.input_ids
    short = Encoded(ids, (*(IGNORED,) * (len(ids) - 1), ids[-1]))
    examples = EncodedData([short, *rest])
    metrics = evaluate(model, examples, batch_size=3)
    losses = [
        negative_log_likelihood(logits[place], label)
        for logits, row in zip(logits_one_by_one(model, examples), examples, strict=True)
        if isinstance(row.labels, tuple)
        for place, label in enumerate(row.labels[1:])
        if label != IGNORED
    ]
    assert metrics.labels == len(losses)
    assert metrics.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert metrics.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-12)
    assert metrics.accuracy is None
    assert metrics.predictions is None


def test_a_perplexity_past_all_floats_is_infinite() -> None:
    model = language_model()
    for parameter in model.parameters():
        parameter.data = parameter.data * np.float32(1e4)
    assert evaluate(model, countings(3), batch_size=3).perplexity == math.inf


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    model, examples = classifier(dtype=np.float64), needles(23)
    one = evaluate(model, examples, batch_size=7)
    other = evaluate(model, examples, batch_size=batch_size)
    assert one.loss == pytest.approx(other.loss, rel=1e-12)
    assert one.accuracy == other.accuracy


def test_dropout_is_off_and_nothing_is_recorded() -> None:
    model = classifier(dropout=0.5)
    model.train()
    one = evaluate(model, needles(5), batch_size=2)
    assert not model.training
    assert one.loss == evaluate(model, needles(5), batch_size=2).loss
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_examples_are_an_error() -> None:
    with pytest.raises(DataError, match="evaluation examples: expected at least one, got none"):
        evaluate(classifier(), EncodedData([]), batch_size=2)


def test_a_class_that_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(TokenError, match="target 5 is outside the 2 classes"):
        evaluate(classifier(), EncodedData([Encoded((1, 2), 5)]), batch_size=2)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_no_number_is_made_of_a_loss_that_is_not_finite(broken: float) -> None:
    for model, examples in ((classifier(), needles(5)), (language_model(), countings(3))):
        next(model.parameters()).data[:] = broken
        with pytest.raises(NumericalError, match=r"the evaluation loss is (nan|inf)"):
            evaluate(model, examples, batch_size=4)
