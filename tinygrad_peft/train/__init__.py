"""Training: data sets, batches, the loop and its events."""

from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.evaluate import Metrics, evaluate
from tinygrad_peft.train.events import (
    Evaluated,
    Event,
    Observer,
    StepEnded,
    TrainingEnded,
    TrainingStarted,
)
from tinygrad_peft.train.loop import train
from tinygrad_peft.train.result import TrainResult
from tinygrad_peft.train.trainable import Trainable

__all__ = [
    "Evaluated",
    "Event",
    "Metrics",
    "Observer",
    "StepEnded",
    "TrainConfig",
    "TrainResult",
    "Trainable",
    "TrainingEnded",
    "TrainingStarted",
    "evaluate",
    "train",
]
