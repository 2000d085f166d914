"""The job that finetune and compare are given."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinygrad_peft.train.config import TrainConfig

if TYPE_CHECKING:
    from tinygrad_peft.nn.config import Pooling
    from tinygrad_peft.train.examples import Task

__all__ = ["TrainingJob"]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A model, data, methods, and the settings of training.

    adapter: a trained adapter to start from, in place of methods.
    task: None: as the data has it.
    pooling: the input of a new classification head; None: as transformers' class has it.
    new_head: train a new head, also where the model has one.
    allow_nonfinite: load weights that are NaN or infinite.
    """

    model: str
    train_data: str
    eval_data: str | None
    task: "Task | None"
    methods: tuple[str, ...]
    out: Path
    pooling: "Pooling | None"
    new_head: bool
    allow_nonfinite: bool
    config: TrainConfig
    adapter: Path | None = None
