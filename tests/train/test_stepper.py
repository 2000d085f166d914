"""Steps in a loop of one's own."""

from dataclasses import replace

import numpy as np
import pytest

from tests.train.toys import classifier, countings, language_model, needles, same, weights
from tinygrad_peft.errors import ConfigError, TokenError, TrainingError
from tinygrad_peft.nn import Transformer
from tinygrad_peft.train import (
    Event,
    StepEnded,
    Stepper,
    TrainConfig,
    TrainingEnded,
    batches,
    evaluate,
    make_batch,
    train,
)

CONFIG = TrainConfig(batch_size=4, accumulation=2, epochs=2, lr=1e-2, label_smoothing=0.1)


def own_loop(model: Transformer, stepper: Stepper) -> None:
    """Make the steps that `train` makes by CONFIG."""
    for epoch in range(CONFIG.epochs):
        made = batches(needles(24), CONFIG.batch_size, seed=CONFIG.seed, epoch=epoch)
        for first in range(0, len(made), CONFIG.accumulation):
            stepper.step(*made[first : first + CONFIG.accumulation])
        evaluate(model, needles(8), batch_size=4)  # leaves the model in evaluation mode


def test_an_own_loop_gives_the_bits_and_events_of_the_built_in_one() -> None:
    one, other = classifier(dropout=0.3), classifier(dropout=0.3)
    events: list[Event] = []
    result = train(one, needles(24), None, CONFIG)
    stepper = Stepper(other, CONFIG, total_steps=6, observers=[events.append])
    own_loop(other, stepper)
    ended = stepper.end()
    assert same(weights(one), weights(other))
    assert tuple(stepper.losses) == result.losses
    assert [type(e) for e in events] == [*[StepEnded] * 6, TrainingEnded]
    assert (ended.outcome, ended.step, ended.saved_to) == ("finished", 6, None)
    assert stepper.tally.tokens == result.tokens
    assert not any(module.training for _, module in other.named_modules())


def test_a_step_returns_its_event() -> None:
    model = language_model()
    batch = make_batch(countings(5))
    stepper = Stepper(model, TrainConfig(lr=1e-2, warmup=0.0), total_steps=2)
    first, second = stepper.step(batch), stepper.step(batch, epoch=0.5)
    assert (first.step, second.step, second.total_steps) == (1, 2, 2)
    assert second.loss < first.loss
    assert (first.lrs, second.lrs) == ((1e-2,), (5e-3,))
    assert (first.epoch, second.epoch) == (0.0, 0.5)
    assert first.tokens == batch.num_tokens
    assert stepper.done == 2


def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_step_before() -> None:
    model = classifier()
    model.state_dict()["classifier.bias"][0] = np.nan
    before = weights(model)
    stepper = Stepper(model, TrainConfig(lr=1e-2, warmup=0.0), total_steps=2)
    message = r"the loss is nan \(step 1, learning rate 0.01\)"
    with pytest.raises(TrainingError, match=message):
        stepper.step(make_batch(needles(4)))
    assert all(np.array_equal(a, before[p], equal_nan=True) for p, a in weights(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert stepper.done == 0


def test_a_step_that_fails_halfway_leaves_no_gradients_to_the_next() -> None:
    batch, config = make_batch(needles(4)), TrainConfig(lr=1e-2, warmup=0.0)
    beyond = replace(batch, input_ids=np.full_like(batch.input_ids, 10**6))
    one, other = classifier(), classifier()
    stepper, whole = (Stepper(model, config, total_steps=2) for model in (one, other))
    with pytest.raises(TokenError, match="token id 1000000"):
        stepper.step(batch, beyond)
    assert stepper.step(batch).grad_norm == whole.step(batch).grad_norm
    assert same(weights(one), weights(other))


def test_a_stepper_checks_its_counts() -> None:
    with pytest.raises(ConfigError, match="total_steps: expected at least 1, got 0"):
        Stepper(classifier(), CONFIG, total_steps=0)
    with pytest.raises(ConfigError, match="a step: expected at least one batch, got none"):
        Stepper(classifier(), CONFIG, total_steps=1).step()


def test_a_batch_of_no_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match="a batch: expected at least one example, got none"):
        make_batch(needles(0))
