"""The files of a run beside its weights: log.jsonl and metrics.json."""

import dataclasses
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from tinygrad_peft.files import replacing
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

NAMES: Mapping[type[Event], str] = {
    TrainingStarted: "training_started",
    StepEnded: "step_ended",
    Evaluated: "evaluated",
    TrainingEnded: "training_ended",
}


class JsonLines:
    """An observer that writes each event at once as a line of JSON: `{"event": ..., ...}`.

    The model and its optimiser are left out. Numbers that are not finite become null. An older file
    is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link's target keeps what it has
        self._file = path.open("xb")

    def __call__(self, event: Event) -> None:
        line = {"event": NAMES[type(event)], **_plain(event)}
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
