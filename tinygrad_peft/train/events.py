"""What a training run tells its observers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from tinygrad_peft.peft.events import StepEnded

__all__ = ["Evaluated", "Event", "Observer", "StepEnded", "TrainingEnded", "TrainingStarted"]

Outcome: TypeAlias = Literal["finished", "interrupted", "diverged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStarted:
    """Everything is ready, and no step was made."""

    steps: int  # that there will be
    epochs: int
    train_examples: int
    eval_examples: int
    trainable_parameters: int
    total_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The model as it is after `step` was tried on the evaluation set."""

    step: int
    epoch: float  # how often the training set has been seen
    loss: float
    accuracy: float | None  # of a classifier
    perplexity: float | None  # of a language model
    seconds: float
    is_best: bool  # of this run's evaluations so far


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded:
    """No more steps will be made."""

    outcome: Outcome
    step: int  # the last one made
    seconds: float  # evaluations included
    tokens_per_second: float  # without padding, and without evaluations
    saved_to: Path | None  # where weights of this run are


Event: TypeAlias = TrainingStarted | StepEnded | Evaluated | TrainingEnded
Observer: TypeAlias = Callable[[Event], None]
