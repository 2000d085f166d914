"""Events of a training run, for observers and plugins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from tinygrad_peft.nn import Module
from tinygrad_peft.nn.optim import Optimizer

__all__ = [
    "Evaluated",
    "Event",
    "Observer",
    "Outcome",
    "StepEnded",
    "TrainingEnded",
    "TrainingStarted",
]

Outcome: TypeAlias = Literal["finished", "interrupted", "diverged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStarted:
    """Training is ready, before its first step or the first one after it was resumed."""

    steps: int  # planned
    epochs: int
    train_examples: int
    eval_examples: int
    trainable_parameters: int
    total_parameters: int
    step: int = 0  # the last one made before


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """One step of the optimiser.

    Plugins get it (`hookspecs.step_ended`) while the weights still have the step's gradients,
    clipped; observers get it afterwards.

    Attributes:
        model: the trained model, with everything that was put into it.
        optimizer: its optimiser, whose `keep_rows` shrinks a weight.
        step: the number of steps so far, counted from 1.
        total_steps: the number of steps of the whole run, unless it ends early.
        epoch: the part of the training set seen so far; 1.0 is all of it once.
        loss: the mean over the step's labels, plus `extra_losses`.
        extra_losses: the terms that plugins added, by the plugins' names.
        lrs: the learning rate of each step of the recipe, in its order, 0 for one that trains
            nothing; of a model without a recipe, its one rate.
        grad_norm: the 2-norm of the gradients before clipping.
        tokens: the number of tokens in the step, without padding.
        seconds: the duration of the step.
    """

    model: Module = field(repr=False, compare=False)
    optimizer: Optimizer = field(repr=False, compare=False)
    step: int
    total_steps: int
    epoch: float
    loss: float
    extra_losses: Mapping[str, float] = field(default_factory=dict)
    lrs: tuple[float, ...]
    grad_norm: float
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The model after `step` was tried on the evaluation set."""

    step: int
    epoch: float  # the part of the training set seen so far
    loss: float  # without extra losses: it means the same under all methods
    accuracy: float | None  # of a classifier
    perplexity: float | None  # of a language model
    seconds: float
    is_best: bool  # of this run's evaluations so far
    extra_losses: Mapping[str, float] = field(default_factory=dict)  # by the plugins' names


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded:
    """The run is over, and the model has the weights that it keeps: its best, after a full run."""

    model: Module = field(repr=False, compare=False)
    outcome: Outcome
    step: int  # the last one made
    seconds: float  # with evaluations
    tokens_per_second: float  # without padding and evaluations
    saved_to: Path | None  # the folder of this run's weights


Event: TypeAlias = TrainingStarted | StepEnded | Evaluated | TrainingEnded
Observer: TypeAlias = Callable[[Event], None]
