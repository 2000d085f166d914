"""The settings of a training run."""

import math

import numpy as np
import pytest

from tinygrad_peft.errors import ConfigError, TrainingError
from tinygrad_peft.nn import SGD, AdamW, Parameter
from tinygrad_peft.train import TrainConfig
from tinygrad_peft.train.config import ScheduleName, make_optimizer, make_schedule


def test_every_setting_that_cannot_be_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(
            epochs=0,
            batch_size=-1,
            accumulation=0,
            max_steps=0,
            max_length=0,
            lr=math.inf,
            optimizer="adam",  # type: ignore[arg-type]
            weight_decay=-0.1,
            schedule="cosin",  # type: ignore[arg-type]
            warmup=1.0,
            max_grad_norm=0.0,
            label_smoothing=1.5,
            eval_every=-1,
            seed=-1,
        )
    assert str(error.value).splitlines() == [
        "training cannot be set up like this:",
        "  - optimizer: expected one of 'adamw', 'sgd', got 'adam'; did you mean 'adamw'?",
        (
            "  - schedule: expected one of 'linear', 'cosine', 'constant', got 'cosin'"
            "; did you mean 'cosine'?"
        ),
        "  - epochs: expected at least 1, got 0",
        "  - batch_size: expected at least 1, got -1",
        "  - accumulation: expected at least 1, got 0",
        "  - eval_every: expected at least 0, got -1",
        "  - seed: expected at least 0, got -1",
        "  - max_steps: expected at least 1, got 0",
        "  - max_length: expected at least 1, got 0",
        "  - lr: expected a finite number above 0, got inf",
        "  - weight_decay: expected a finite number of at least 0, got -0.1",
        "  - warmup: expected at least 0 and below 1, got 1.0",
        "  - max_grad_norm: expected a number above 0, or None, got 0.0",
        "  - label_smoothing: expected at least 0 and below 1, got 1.5",
    ]


@pytest.mark.parametrize("lr", [0.0, -1.0, math.nan])
def test_a_learning_rate_is_a_finite_number_above_zero(lr: float) -> None:
    with pytest.raises(ConfigError, match="lr: expected a finite number above 0"):
        TrainConfig(lr=lr)


def test_the_optimizer_takes_its_settings_from_the_config() -> None:
    weight = Parameter(np.ones(2))
    adamw = make_optimizer(TrainConfig(lr=0.5, weight_decay=0.25), [weight])
    assert isinstance(adamw, AdamW)
    assert (adamw.lr, adamw.weight_decay) == (0.5, 0.25)
    sgd = make_optimizer(TrainConfig(optimizer="sgd", lr=0.5, weight_decay=0.25), [weight])
    assert isinstance(sgd, SGD)
    assert (sgd.lr, sgd.weight_decay) == (0.5, 0.25)


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    with pytest.raises(TrainingError, match="nothing to train: of 1 parameters"):
        make_optimizer(TrainConfig(), [Parameter(np.ones(2), requires_grad=False)])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_run_of_one_step_has_a_rate(schedule: ScheduleName) -> None:
    assert make_schedule(TrainConfig(schedule=schedule), 1)(0) == 1.0


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (TrainConfig(schedule="linear", warmup=0.2), [0, 0.5, 1, 0.875, 0.75]),
        (TrainConfig(schedule="cosine", warmup=0.0), [1, 0.9755, 0.9045, 0.7939, 0.6545]),
        (TrainConfig(schedule="constant", warmup=0.11), [0, 0.5, 1, 1, 1]),  # rounded up
    ],
    ids=["linear", "cosine", "constant"],
)
def test_the_warmup_is_a_share_of_all_steps(config: TrainConfig, rates: list[float]) -> None:
    schedule = make_schedule(config, total=10)
    assert [schedule(step) for step in range(5)] == pytest.approx(rates, abs=1e-4)
