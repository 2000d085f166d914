"""What a comparison of recipes comes to, and the file that holds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models.safe_files import replacing
from tinygrad_peft.peft import PeftConfig
from tinygrad_peft.train.events import Evaluated

__all__ = ["Comparison", "Contender", "Row", "RowOutcome", "read_comparison", "write_comparison"]

RowOutcome: TypeAlias = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A recipe that takes part in a comparison.

    An empty recipe is the frozen model: a linear head on its features for a classifier, and a
    language model as it is.
    """

    label: str
    recipe: Sequence[PeftConfig] = ()
    lr: float | None = None  # None: that of all, see `TrainConfig`


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How one contender did; what was not measured is None."""

    label: str
    methods: tuple[dict[str, object], ...]  # the settings of each step; none for the frozen model
    outcome: RowOutcome
    error: str | None = None  # why it failed
    # By the best evaluation, whose weights were kept:
    loss: float | None = None
    accuracy: float | None = None  # of a classifier
    perplexity: float | None = None  # of a language model
    trainable: int | None = None  # parameters
    total: int | None = None  # parameters, frozen ones too
    rates: tuple[float, ...] = ()  # the peak learning rates, each once
    seconds: float | None = None  # of training; evaluations are not in them
    peak_memory: int | None = None  # bytes that the process had at most in the meantime
    losses: tuple[float, ...] = ()  # of each step
    evaluations: tuple[Evaluated, ...] = ()
    folder: str | None = None  # where the adapter is, in the comparison's folder

    @property
    def ratio(self) -> float | None:
        """The trainable share of all parameters."""
        return self.trainable / self.total if self.trainable is not None and self.total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The rows so far, in the contenders' order."""

    rows: tuple[Row, ...]
    waiting: tuple[str, ...]  # labels of contenders that have no row yet
    interrupted: bool  # by Ctrl-C
    job: dict[str, object]  # what was compared: whatever the caller says of it
    config: dict[str, object]  # how all were trained, but for the learning rate
    versions: dict[str, str]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows of contenders that failed."""
        return tuple(row for row in self.rows if row.outcome == "failed")

    @property
    def classifies(self) -> bool:
        """Whether there is an accuracy to compare by; else it is the loss."""
        return any(row.accuracy is not None for row in self.rows)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write a comparison as JSON; the file is whole or as it was. Infinite numbers become null.

    Raises TypeError where the job holds what JSON cannot.
    """
    text = msgspec.json.format(msgspec.json.encode(comparison), indent=1)
    with replacing(path) as temporary:
        temporary.write_bytes(text + b"\n")


def read_comparison(path: Path) -> Comparison:
    """The comparison in a file. Raises CheckpointError where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Comparison)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no comparison: {error}") from error
