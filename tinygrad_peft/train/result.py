"""What a training run comes to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from tinygrad_peft.train.events import Evaluated

__all__ = ["Finish", "TrainResult"]

Finish: TypeAlias = Literal["finished", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a run went."""

    outcome: Finish
    steps: int  # that were made
    rates: tuple[float, ...]  # the peak learning rates, each once
    losses: tuple[float, ...]  # of each step
    evaluations: tuple[Evaluated, ...]
    best: Evaluated | None  # whose weights the model has, and `saved_to`, after a finished run
    seconds: float  # evaluations included
    tokens: int  # that were trained on, padding left out
    tokens_per_second: float  # evaluations left out
    padding_share: float  # of all places in the batches
    peak_memory: int | None  # bytes that the process had at most; None where that is not known
    trainable_parameters: int
    total_parameters: int
    saved_to: Path | None  # where the last weights that were saved are

    @property
    def final(self) -> Evaluated | None:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run."""
        return self.outcome == "interrupted"
