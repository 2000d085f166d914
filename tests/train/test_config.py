"""The settings of a training run."""

import math

import pytest

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.train import TrainConfig


def test_all_invalid_settings_are_listed_at_once() -> None:
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
        "invalid TrainConfig:",
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
        "  - lr: expected a finite number above 0, or None, got inf",
        "  - weight_decay: expected a finite number of at least 0, got -0.1",
        "  - warmup: expected at least 0 and below 1, got 1.0",
        "  - max_grad_norm: expected a number above 0, or None, got 0.0",
        "  - label_smoothing: expected at least 0 and below 1, got 1.5",
    ]


@pytest.mark.parametrize("lr", [0.0, -1.0, math.nan])
def test_a_learning_rate_is_a_finite_number_above_zero(lr: float) -> None:
    with pytest.raises(ConfigError, match="lr: expected a finite number above 0"):
        TrainConfig(lr=lr)


def test_settings_of_other_types_are_all_listed() -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(
            epochs="3",  # type: ignore[arg-type]
            batch_size=2.5,  # type: ignore[arg-type]
            seed=None,  # type: ignore[arg-type]
            lr="0.1",  # type: ignore[arg-type]
            warmup=False,
        )
    assert str(error.value).splitlines() == [
        "invalid TrainConfig:",
        "  - epochs: expected an integer, got '3'",
        "  - batch_size: expected an integer, got 2.5",
        "  - seed: expected an integer, got None",
        "  - lr: expected a number, got '0.1'",
        "  - warmup: expected a number, got False",
    ]
