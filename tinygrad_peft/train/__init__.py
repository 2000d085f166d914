"""Training: data sets, batches, the loop and its events."""

from tinygrad_peft.train.compare import compare
from tinygrad_peft.train.comparison import Comparison, Contender, Row
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
from tinygrad_peft.train.trial import Turn, Watcher

__all__ = [
    "Comparison",
    "Contender",
    "Evaluated",
    "Event",
    "Metrics",
    "Observer",
    "Row",
    "StepEnded",
    "TrainConfig",
    "TrainResult",
    "Trainable",
    "TrainingEnded",
    "TrainingStarted",
    "Turn",
    "Watcher",
    "compare",
    "evaluate",
    "train",
]
