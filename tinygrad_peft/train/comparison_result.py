"""The result of a comparison of recipes, and its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import read_bytes, replacing, settled
from tinygrad_peft.peft import PeftConfig
from tinygrad_peft.train.events import Evaluated

__all__ = [
    "COMPARISON_FILE",
    "Comparison",
    "Contender",
    "Row",
    "RowOutcome",
    "read_comparison",
    "write_comparison",
]

COMPARISON_FILE = "comparison.json"

RowOutcome: TypeAlias = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A recipe to compare.

    An empty recipe stands for the frozen model: a classifier with a linear probe, a language model
    as it is.
    """

    label: str
    recipe: Sequence[PeftConfig] = ()
    lr: float | None = None  # None: the rate of the comparison's TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The result of one contender; None: not measured."""

    label: str
    methods: tuple[dict[str, object], ...]  # the settings of each step; () for the frozen model
    outcome: RowOutcome
    error: str | None = None  # the reason of a failure
    # From the best evaluation, whose weights were kept:
    loss: float | None = None
    accuracy: float | None = None  # of a classifier
    perplexity: float | None = None  # of a language model
    trainable: int | None = None  # parameters
    total: int | None = None  # parameters, frozen ones too
    rates: tuple[float, ...] = ()  # the distinct peak learning rates
    seconds: float | None = None  # of training, without evaluations
    peak_memory: int | None = None  # the most bytes of the process in the meantime
    losses: tuple[float, ...] = ()  # of each step
    evaluations: tuple[Evaluated, ...] = ()
    folder: str | None = None  # of the adapter, within the comparison's folder

    @property
    def ratio(self) -> float | None:
        """The trainable share of all parameters."""
        return self.trainable / self.total if self.trainable is not None and self.total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The rows so far, in the contenders' order."""

    rows: tuple[Row, ...]
    waiting: tuple[str, ...]  # labels of contenders without a row so far
    interrupted: bool  # by Ctrl-C
    job: dict[str, object]  # facts that the caller gave
    config: dict[str, object]  # the settings of training, without the learning rate
    versions: dict[str, str]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows of contenders that failed."""
        return tuple(row for row in self.rows if row.outcome == "failed")

    @property
    def classifies(self) -> bool:
        """True if accuracies are compared, False if losses are."""
        return any(row.accuracy is not None for row in self.rows)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write a comparison as JSON, whole or not at all. Infinite numbers become null.

    Raises TypeError for a job with values that JSON cannot hold.
    """
    text = msgspec.json.format(msgspec.json.encode(comparison), indent=1)
    with replacing(path) as temporary:
        temporary.write_bytes(text + b"\n")


def read_comparison(path: Path) -> Comparison:
    """Read a comparison. Raises CheckpointError for a file that is missing or invalid."""
    raw = read_bytes(settled(path.parent) / path.name)
    try:
        return msgspec.json.decode(raw, type=Comparison)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a comparison: {error}") from error
