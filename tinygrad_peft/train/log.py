"""The files of a run beside its weights: log.jsonl and metrics.json."""

import dataclasses
import logging
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path, PurePath
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
import numpy as np

from tinygrad_peft.files import read_bytes, replacing
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.events import (
    Evaluated,
    Event,
    StepEnded,
    TrainingEnded,
    TrainingStarted,
)
from tinygrad_peft.train.result import TrainResult

__all__ = ["JsonLines", "versions", "write_metrics"]

logger = logging.getLogger(__name__)

_LARGEST_LOG = 10_000_000_000  # bytes; some 40 million steps

NAMES: Mapping[type[Event], str] = {
    TrainingStarted: "training_started",
    StepEnded: "step_ended",
    Evaluated: "evaluated",
    TrainingEnded: "training_ended",
}


class _Line(msgspec.Struct):
    """The part of a line of log.jsonl that says where it belongs."""

    event: str
    step: int


class JsonLines:
    """An observer that writes each event at once as a line of JSON: `{"event": ..., ...}`.

    The model and its optimiser are left out. Numbers that are not finite become null. An older file
    is replaced, unless the run goes on from a checkpoint: then the lines up to its step stay.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: BinaryIO | None = None
        self._last: tuple[str, float] | None = None  # the event and step of the last line kept

    def __call__(self, event: Event) -> None:
        resumed = isinstance(event, TrainingStarted) and event.step > 0
        if self._file is None:
            self._file = self._opened(event.step if resumed else None)
        # A run that stopped within an evaluation, and went on twice, makes it twice.
        if not resumed and (NAMES[type(event)], event.step) != self._last:
            line = {"event": NAMES[type(event)], **_plain(event)}
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()

    def _opened(self, step: int | None) -> BinaryIO:
        """Open the file with its lines up to a step; empty for None."""
        if step is None:
            self.path.unlink(missing_ok=True)  # a link's target keeps what it has
            return self.path.open("xb")
        read = read_bytes(self.path, most=_LARGEST_LOG) if self.path.exists() else b""
        lines = read.splitlines(keepends=True)
        places = list(takewhile(lambda place: place[1] <= step, map(_place, lines)))
        self._last = places[-1] if places else None
        if self._last is None or self._last[1] != step:
            logger.warning("%s: lines are missing before step %d", self.path, step + 1)
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(lines[: len(places)]))
        return self.path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def write_metrics(
    path: Path,
    config: TrainConfig,
    result: TrainResult,
    *,
    job: Mapping[str, object] | None = None,
) -> None:
    """Write metrics.json, the settings and the result of a run, whole or not at all.

    `job` adds what the caller knows of the run (model, data, method): numbers, text, lists, maps.
    Raises TypeError for values that JSON cannot hold.
    """
    facts = {
        "job": dict(job or {}),
        "config": config,
        "outcome": result.outcome,
        "final": result.final,
        "best": result.best,
        "evaluations": result.evaluations,
        **{name: getattr(result, name) for name in _NUMBERS},
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        text = msgspec.json.format(msgspec.json.encode(facts, enc_hook=_path_as_text))
        temporary.write_bytes(text + b"\n")


_NUMBERS = (
    *("steps", "rates", "extra_losses", "seconds", "tokens", "tokens_per_second", "padding_share"),
    *("peak_memory", "trainable_parameters", "total_parameters", "saved_to"),
)


def versions() -> dict[str, str]:
    """Name the software that a run's numbers depend on, with its versions."""
    # NumPy leaves out of its configuration what its build did not know.
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {
        "tinygrad_peft": _own_version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip(),
    }


def _place(line: bytes) -> tuple[str, float]:
    """Return the event and step of a line: of the end of a run, and of half a line, infinity."""
    try:
        found = msgspec.json.decode(line, type=_Line) if line.endswith(b"\n") else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = None
    if found is None or found.event == NAMES[TrainingEnded]:
        return "", math.inf
    return found.event, found.step


def _own_version() -> str:
    try:
        return version("tinygrad-peft")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def _plain(event: Event) -> dict[str, object]:
    names = [f.name for f in dataclasses.fields(event) if f.name not in ("model", "optimizer")]
    values = {name: getattr(event, name) for name in names}
    plain: dict[str, object] = msgspec.to_builtins(values, enc_hook=_path_as_text)
    return plain


def _path_as_text(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"JSON cannot hold a {type(value).__name__}: {value!r}")
