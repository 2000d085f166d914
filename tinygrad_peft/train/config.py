"""The settings of a training run."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from tinygrad_peft.errors import ConfigError, listed, nearest
from tinygrad_peft.nn.module import Parameter
from tinygrad_peft.nn.optim import SGD, AdamW, Optimizer
from tinygrad_peft.nn.schedules import Schedule, constant, cosine_decay, linear_decay
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train.trainable import Trainable

__all__ = [
    "OptimizerName",
    "ScheduleName",
    "TrainConfig",
    "make_optimizer",
    "make_schedule",
    "peak_rates",
]

OptimizerName: TypeAlias = Literal["adamw", "sgd"]
ScheduleName: TypeAlias = Literal["linear", "cosine", "constant"]

USUAL_LR = 1e-3  # where no method says what suits it


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Raises ConfigError that lists every setting that cannot be.

    lr: the peak learning rate of all that is trained. None: what each step of a recipe adds is
        trained at the rate that suits its method (`PeftConfig.learning_rate`), all else at 0.001.
    """

    epochs: int = 1
    batch_size: int = 16
    accumulation: int = 1  # batches whose gradients make one step
    max_steps: int | None = None  # an end before the epochs' own
    max_length: int | None = None  # tokens an example has at most
    lr: float | None = None
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0
    schedule: ScheduleName = "linear"
    warmup: float = 0.06  # the share of all steps in which the learning rate rises from 0
    max_grad_norm: float | None = 1.0  # None: gradients are not clipped
    label_smoothing: float = 0.0
    eval_every: int = 0  # steps; 0: at each epoch's end
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*self._choices(), *self._counts(), *self._rates()]
        if problems:
            raise ConfigError(f"training cannot be set up like this:\n{listed(problems)}")

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
        least |= {
            name: 1 for name in ("max_steps", "max_length") if getattr(self, name) is not None
        }
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
        }
        return [
            f"{name}: expected {wanted}, got {getattr(self, name)}"
            for (name, wanted), holds in rules.items()
            if not holds
        ]


def peak_rates(config: TrainConfig, model: Trainable) -> dict[Parameter, float]:
    """What is trained of a model, and the peak learning rate of each parameter."""
    usual = model.learning_rates() if isinstance(model, PeftModel) else {}
    trained = (p for p in model.parameters() if p.requires_grad)
    return {p: config.lr or usual.get(p, USUAL_LR) for p in trained}


def make_optimizer(config: TrainConfig, model: Trainable) -> Optimizer:
    """The optimiser of all that is trained: its rate is the highest, others have a share of it.

    Raises TrainingError where nothing requires a gradient.
    """
    rates = peak_rates(config, model)
    lr = max(rates.values(), default=USUAL_LR)
    factors = {p: rate / lr for p, rate in rates.items()}
    kind = SGD if config.optimizer == "sgd" else AdamW
    return kind(model.parameters(), lr=lr, factors=factors, weight_decay=config.weight_decay)


def make_schedule(config: TrainConfig, total: int) -> Schedule:
    """The multiplier of the learning rate for a run of `total` steps."""
    # A warm-up begins at rate 0, and a run of one step would be nothing else.
    warmup = min(math.ceil(config.warmup * total), total - 1)
    if config.schedule == "cosine":
        return cosine_decay(total, warmup)
    return constant(warmup) if config.schedule == "constant" else linear_decay(total, warmup)
