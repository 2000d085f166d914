"""The settings of a training run, and their defaults.

These defaults are the only ones: the command line reads them here. Nothing slow is imported, so
that its help need not wait for NumPy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, TypeAlias, get_args

from tinygrad_peft.errors import ConfigError, listed, mistyped, nearest

__all__ = ["CHECKPOINT_SETTINGS", "OptimizerName", "ScheduleName", "TrainConfig"]

OptimizerName: TypeAlias = Literal["adamw", "sgd"]
ScheduleName: TypeAlias = Literal["linear", "cosine", "constant"]

CHECKPOINT_SETTINGS = ("save_every", "save_minutes", "keep")  # they change no number of a run

_WHOLE = (
    *("epochs", "batch_size", "accumulation", "eval_every", "seed", "max_steps", "max_length"),
    *("save_every", "keep"),
)
_REAL = ("lr", "weight_decay", "warmup", "max_grad_norm", "label_smoothing", "save_minutes")
# None has a meaning
_OPTIONAL = ("max_steps", "max_length", "lr", "max_grad_norm", "save_every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of training. Raises ConfigError that lists every invalid one.

    epochs: passes over the training set.
    batch_size: examples per batch.
    accumulation: batches per step.
    max_steps: the most steps; None: as many as the epochs have.
    max_length: the most tokens of an example; longer ones are refused. None: any length.
    lr: the peak learning rate of all weights. None: each step of a recipe at the rate of its method
        (`PeftConfig.learning_rate`), and everything else at 0.001.
    optimizer: "adamw" or "sgd".
    weight_decay: decoupled under AdamW, L2 under SGD.
    schedule: the learning rate after the warm-up: "linear", "cosine" or "constant".
    warmup: the share of all steps in which the learning rate rises from 0.
    max_grad_norm: the largest norm of the gradients. None: they are not clipped.
    label_smoothing: the share of the other labels in the target.
    eval_every: steps between evaluations; 0: at the end of each epoch.
    seed: the source of the examples' order and of dropout.
    save_every: steps between checkpoints; 0: none. None: a checkpoint every `save_minutes`.
    save_minutes: minutes between checkpoints without `save_every`.
    keep: the most checkpoints to keep, the newest.
    """

    epochs: int = 1
    batch_size: int = 32
    accumulation: int = 1
    max_steps: int | None = None
    max_length: int | None = None
    lr: float | None = None
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0
    schedule: ScheduleName = "linear"
    warmup: float = 0.06
    max_grad_norm: float | None = 1.0
    label_smoothing: float = 0.0
    eval_every: int = 0
    seed: int = 0
    save_every: int | None = None
    save_minutes: float = 5.0
    keep: int = 2

    def __post_init__(self) -> None:
        if problems := self._mistyped() or [*self._choices(), *self._counts(), *self._rates()]:
            raise ConfigError(f"invalid TrainConfig:\n{listed(problems)}")

    def _mistyped(self) -> list[str]:
        return [
            *mistyped(self._given(_WHOLE), Integral, "an integer"),
            *mistyped(self._given(_REAL), Real, "a number"),
        ]

    def _given(self, names: Sequence[str]) -> dict[str, object]:
        values = {name: getattr(self, name) for name in names}
        return {k: v for k, v in values.items() if v is not None or k not in _OPTIONAL}

    def _choices(self) -> list[str]:
        choices = {"optimizer": get_args(OptimizerName), "schedule": get_args(ScheduleName)}
        return [
            f"{name}: expected one of {', '.join(map(repr, known))}, "
            f"got {getattr(self, name)!r}{nearest(str(getattr(self, name)), known, 1)}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]

    def _counts(self) -> list[str]:
        least = {"epochs": 1, "batch_size": 1, "accumulation": 1, "eval_every": 0, "seed": 0}
        optional = {"max_steps": 1, "max_length": 1, "save_every": 0}
        least |= {k: bound for k, bound in optional.items() if getattr(self, k) is not None}
        least["keep"] = 1
        return [
            f"{name}: expected at least {bound}, got {getattr(self, name)}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]

    def _rates(self) -> list[str]:
        max_norm = math.inf if self.max_grad_norm is None else self.max_grad_norm
        rules = {
            ("lr", "a finite number above 0, or None"): self.lr is None or 0 < self.lr < math.inf,
            ("weight_decay", "a finite number of at least 0"): 0 <= self.weight_decay < math.inf,
            ("warmup", "at least 0 and below 1"): 0 <= self.warmup < 1,
            ("max_grad_norm", "a number above 0, or None"): max_norm > 0,
            ("label_smoothing", "at least 0 and below 1"): 0 <= self.label_smoothing < 1,
            ("save_minutes", "a finite number above 0"): 0 < self.save_minutes < math.inf,
        }
        return [
            f"{name}: expected {wanted}, got {getattr(self, name)}"
            for (name, wanted), holds in rules.items()
            if not holds
        ]
