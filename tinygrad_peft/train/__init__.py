"""Training: data sets, batches, the loop and its events.

The names are imported when they are first used, so that the command line reads the defaults of
`TrainConfig` without NumPy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinygrad_peft.train import hookspecs
    from tinygrad_peft.train.batching import Batch, batches, make_batch
    from tinygrad_peft.train.comparison_result import Comparison, Contender, Row
    from tinygrad_peft.train.comparison_run import compare
    from tinygrad_peft.train.config import TrainConfig
    from tinygrad_peft.train.encoding import Encoded, EncodedData
    from tinygrad_peft.train.evaluation import Metrics, evaluate
    from tinygrad_peft.train.events import (
        Evaluated,
        Event,
        Observer,
        StepEnded,
        TrainingEnded,
        TrainingStarted,
    )
    from tinygrad_peft.train.heads import with_saved_head
    from tinygrad_peft.train.loop import train
    from tinygrad_peft.train.result import TrainResult
    from tinygrad_peft.train.running_state import read_running_state, write_running_state
    from tinygrad_peft.train.stepper import Stepper
    from tinygrad_peft.train.trainable import Stateful, Trainable
    from tinygrad_peft.train.trial import Turn, Watcher
else:
    _HOMES = {
        name: f"{__name__}.{module}"
        for module, names in {
            "batching": ("Batch", "batches", "make_batch"),
            "comparison_result": ("Comparison", "Contender", "Row"),
            "comparison_run": ("compare",),
            "config": ("TrainConfig",),
            "encoding": ("Encoded", "EncodedData"),
            "evaluation": ("Metrics", "evaluate"),
            "events": (
                *("Evaluated", "Event", "Observer", "StepEnded"),
                *("TrainingEnded", "TrainingStarted"),
            ),
            "heads": ("with_saved_head",),
            "hookspecs": ("hookspecs",),
            "loop": ("train",),
            "result": ("TrainResult",),
            "running_state": ("read_running_state", "write_running_state"),
            "stepper": ("Stepper",),
            "trainable": ("Stateful", "Trainable"),
            "trial": ("Turn", "Watcher"),
        }.items()
        for name in names
    }

    def __getattr__(name):  # noqa: ANN001, ANN202 - hidden from mypy, which sees the real names
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(home)
        return module if home == f"{__name__}.{name}" else getattr(module, name)

    def __dir__():  # noqa: ANN202 - hidden from mypy
        return sorted({*globals(), *_HOMES})


__all__ = [
    "Batch",
    "Comparison",
    "Contender",
    "Encoded",
    "EncodedData",
    "Evaluated",
    "Event",
    "Metrics",
    "Observer",
    "Row",
    "Stateful",
    "StepEnded",
    "Stepper",
    "TrainConfig",
    "TrainResult",
    "Trainable",
    "TrainingEnded",
    "TrainingStarted",
    "Turn",
    "Watcher",
    "batches",
    "compare",
    "evaluate",
    "hookspecs",
    "make_batch",
    "read_running_state",
    "train",
    "with_saved_head",
    "write_running_state",
]
