"""The frozen model's probe."""

import numpy as np
import pytest

from tests.train.toys import classifier, countings, language_model, needles, same, weights
from tinygrad_peft.errors import ConfigError, DataError
from tinygrad_peft.train.batching import batches
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft.train.probe import PRIOR, pooled_features, probe


def marked(count: int) -> EncodedData:
    """Texts with their class in every token, for a linear head to tell."""
    rng = np.random.default_rng(0)
    made = []
    for place in range(count):
        label = place % 2
        made.append(Encoded((3 + 4 * label,) * int(rng.integers(2, 9)), label))
    return EncodedData(made)


def test_a_probe_learns_from_the_features_and_changes_nothing() -> None:
    model = classifier(dropout=0.3)
    before = weights(model)
    found = probe(model, marked(24), marked(12), batch_size=5)
    assert (found.accuracy, found.trainable) == (1.0, 34)
    assert found.loss < 0.5
    assert found.seconds > 0
    assert same(before, weights(model))


def test_two_equal_probes_are_equal() -> None:
    one, other = (
        probe(classifier(), needles(24), needles(12, seed=1), batch_size=5) for _ in range(2)
    )
    assert (one.loss, one.accuracy) == (other.loss, other.accuracy)


def test_the_head_is_at_the_optimum_of_the_penalised_loss() -> None:
    """Compare with a plain gradient descent of many steps in float64."""
    train_set, test_set = needles(40), needles(20, seed=1)
    model = classifier(dtype=np.float64)
    x = pooled_features(model, train_set, batch_size=8)
    y = np.eye(2)[[int(np.asarray(row.labels)) for row in train_set]]
    weight, bias = np.zeros((2, 16)), np.zeros(2)
    for _ in range(20_000):
        logits = x @ weight.T + bias
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (chances - y) / len(y)
        weight -= 0.2 * (error.T @ x + PRIOR / len(y) * weight)
        bias -= 0.2 * error.sum(0)
    logits = pooled_features(model, test_set, batch_size=8) @ weight.T + bias
    labels = np.array([row.labels for row in test_set])
    picked = logits[np.arange(20), labels]
    loss = float(np.mean(np.log(np.exp(logits).sum(1)) - picked))
    assert probe(model, train_set, test_set, batch_size=8).loss == pytest.approx(loss, rel=0.02)


def test_features_are_in_the_order_of_the_examples() -> None:
    model, examples = classifier(), needles(9)
    model.eval()
    features = pooled_features(model, examples, batch_size=4)
    for example, feature in zip(examples, features, strict=True):
        [batch] = batches(EncodedData([example]), 1, seed=None)
        alone = model.pooled(batch.input_ids, batch.attention_mask).data
        np.testing.assert_allclose(feature, alone[0], rtol=1e-4, atol=1e-6)


def test_a_model_without_a_classifier_is_refused() -> None:
    with pytest.raises(ConfigError, match="a probe: expected a model with a classification head"):
        probe(language_model(), needles(4), needles(4), batch_size=2)


def test_examples_of_a_language_model_are_refused() -> None:
    with pytest.raises(DataError, match="invalid evaluation examples"):
        probe(classifier(), needles(4), countings(4), batch_size=2)
