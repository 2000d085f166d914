"""The result of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Literal, TypeAlias

from tinygrad_peft.train.events import Evaluated

__all__ = ["Finish", "TrainResult"]

Finish: TypeAlias = Literal["finished", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The outcome of a run, with its figures."""

    outcome: Finish
    steps: int  # made
    rates: tuple[float, ...]  # the peak learning rates, each once
    losses: tuple[float, ...]  # of each step, with the extra losses
    extra_losses: Mapping[str, float]  # of the last step, by the plugins' names
    evaluations: tuple[Evaluated, ...]
    best: Evaluated | None  # after a finished run, of the weights in the model and `saved_to`
    seconds: float  # with evaluations
    tokens: int  # trained on, without padding
    tokens_per_second: float  # without evaluations
    padding_share: float  # of all places in the batches
    peak_memory: int | None  # the most bytes of the process; None if unknown
    trainable_parameters: int  # at the end
    total_parameters: int
    saved_to: Path | None  # the folder of the weights saved last
    stopped_by: Signals | None = None  # what ended an interrupted run; Ctrl-C is SIGINT

    @property
    def final(self) -> Evaluated | None:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def interrupted(self) -> bool:
        """True if a signal ended the run, such as Ctrl-C."""
        return self.outcome == "interrupted"
