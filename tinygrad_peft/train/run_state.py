"""The state of a run: everything that its next step depends on, written and put back to the bit.

The schedule and the order of the examples follow from the settings and the number of steps.
"""

import dataclasses
import logging
import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import save_file

from tinygrad_peft.arrays import AnyArray, Shape
from tinygrad_peft.errors import CheckpointError, ConfigError, listed
from tinygrad_peft.nn.module import Parameter, mismatches
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train.best_weights import BestWeights
from tinygrad_peft.train.events import Evaluated
from tinygrad_peft.train.fingerprint import differences, frozen_weights
from tinygrad_peft.train.generators import generator_states, restore_generators
from tinygrad_peft.train.log import versions
from tinygrad_peft.train.running_state import (
    RUNNING_STATE,
    has_running_state,
    read_running_state,
    write_running_state,
)
from tinygrad_peft.train.stepper import Stepper
from tinygrad_peft.train.stored_state import ARRAYS, PROGRESS, Progress, StoredState, digest

__all__ = ["RunState"]

logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """Everything that changes while a run goes on.

    `facts` are those of the run (`run_facts`); the digest of the frozen weights is added when a
    checkpoint needs it. `assessed` is the last step whose weights were tried.
    """

    stepper: Stepper
    best: BestWeights
    facts: dict[str, object]
    evaluations: list[Evaluated] = field(default_factory=list)
    assessed: int = 0

    # ---------- writing ----------

    def write(self, folder: Path) -> None:
        """Write a checkpoint into an empty folder. Raises CheckpointError where that fails."""
        try:
            save_file(self._arrays(), folder / ARRAYS)
            write_running_state(self.stepper.model, folder)
            digests = {path.name: digest(path) for path in folder.iterdir()}
            (folder / PROGRESS).write_bytes(msgspec.json.encode(self._progress(digests)))
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{folder} cannot be written: {reason}") from error

    def _progress(self, digests: dict[str, str]) -> Progress:
        tally = self.stepper.tally
        return Progress(
            format=1,
            step=self.stepper.done,
            assessed=self.assessed,
            best_step=self.best.kept_step,
            is_saved=self.best.saved_to is not None,
            tokens=tally.tokens,
            places=tally.places,
            step_seconds=tally.seconds,
            seconds=self.stepper.seconds,
            extra_losses=self.stepper.extra_losses,
            evaluations=self.evaluations,
            facts=self._all_facts(),
            versions=_surroundings(),
            digests=digests,
        )

    def _all_facts(self) -> dict[str, object]:
        if "frozen weights" not in self.facts:
            self.facts["frozen weights"] = frozen_weights(self.stepper.root)
        return self.facts

    def _arrays(self) -> dict[str, AnyArray]:
        weights = self._weights()
        parts: dict[str, Mapping[str, AnyArray]] = {
            "weights": {path: weight.data for path, weight in weights.items()},
            "best": dict(zip(weights, self.best.kept, strict=True)),
            "optimizer": self.stepper.optimizer.state_dict(),
            "generators": generator_states(self.stepper.root),
            "losses": {"all": np.array(self.stepper.losses, np.float64)},
        }
        return {
            f"{part}:{name}": np.ascontiguousarray(array).reshape(array.shape)
            for part, arrays in parts.items()
            for name, array in arrays.items()
        }

    def _weights(self) -> dict[str, Parameter]:
        """Return the trained weights by their paths, or else their places."""
        paths = {id(weight): path for path, weight in self.stepper.root.named_parameters()}
        return {
            paths.get(id(weight), str(place)): weight
            for place, weight in enumerate(self.stepper.optimizer.parameters)
        }

    # ---------- reading ----------

    def restore(self, stored: StoredState) -> None:
        """Take over a stored state; `best` is taken to be saved in its own folder.

        Warns where software that can change bits has another version.

        Raises:
            ConfigError: lists everything in which the earlier run differs from this one.
            CheckpointError: lists everything that does not fit the model.
        """
        progress = stored.progress
        if different := differences(progress.facts, self._all_facts()):
            raise ConfigError(f"{stored.folder} is of a run that differs:\n{listed(different)}")
        if problems := list(self._misfits(stored)):
            raise CheckpointError(f"{stored.folder} does not fit the run:\n{listed(problems)}")
        _warn_of_other_software(stored)
        self._restore_arrays(stored)
        model = self.stepper.model
        if isinstance(model, PeftModel) and (
            RUNNING_STATE in progress.digests or has_running_state(model)
        ):
            read_running_state(model, stored.folder)
        stepper, tally = self.stepper, self.stepper.tally
        stepper.losses[:] = stored.arrays["losses:all"].tolist()
        stepper.extra_losses = progress.extra_losses
        stepper.earlier_seconds = progress.seconds
        tally.tokens, tally.places = progress.tokens, progress.places
        tally.seconds = progress.step_seconds
        self.evaluations[:] = [_with_perplexity(event) for event in progress.evaluations]
        self.assessed = progress.assessed
        self.best.kept_step = progress.best_step
        self.best.went_on = True
        self.best.saved_to = self.best.out if progress.is_saved else None

    def _restore_arrays(self, stored: StoredState) -> None:
        optimizer, weights = self.stepper.optimizer, stored.part("weights")
        for path, weight in self._weights().items():
            for axis, size in enumerate(weights[path].shape):
                if size < weight.shape[axis]:  # it shrank in the run
                    optimizer.keep_rows(weight, np.arange(size), axis=axis)
            weight.data[...] = weights[path]
        optimizer.load_state_dict(stored.part("optimizer"))
        restore_generators(self.stepper.root, stored.part("generators"))
        best = stored.part("best")
        self.best.kept = [best[path] for path in self._weights()]

    def _misfits(self, stored: StoredState) -> Iterator[str]:
        """Yield everything in which the arrays and counts do not fit the run."""
        progress, arrays = stored.progress, stored.arrays
        own = {**self._arrays(), "losses:all": np.zeros(progress.step)}
        shapes = {name: array.shape for name, array in arrays.items()}
        yield from mismatches(self._expected(own, shapes), shapes)
        for name, array in arrays.items():
            if name in own and array.dtype != own[name].dtype:
                yield f"wrong dtype: {name} is {array.dtype}, expected {own[name].dtype}"
            elif not (np.isfinite(array) & ((array >= 0) | (array.dtype.kind == "f"))).all():
                yield f"{name}: expected finite numbers, and counts of at least 0"
        counts = {"assessed": progress.assessed, "best_step": progress.best_step}
        counts |= {f"evaluation {i}": e.step for i, e in enumerate(progress.evaluations, start=1)}
        if progress.step > self.stepper.total_steps:
            yield f"step: expected at most {self.stepper.total_steps}, got {progress.step}"
        for name, step in counts.items():
            if not 0 <= step <= progress.step:
                yield f"{name}: expected a step from 0 to {progress.step}, got {step}"

    def _expected(
        self, own: Mapping[str, AnyArray], found: Mapping[str, Shape]
    ) -> dict[str, Shape]:
        """Return the shapes that the arrays of a file must have: weights may have shrunk."""
        expected = {name: array.shape for name, array in own.items()}
        for place, (path, weight) in enumerate(self._weights().items()):
            moments = [f"optimizer:{name}.{place}" for name in self.stepper.optimizer.moments]
            for names in ([f"weights:{path}", *moments], [f"best:{path}"]):
                shape = found.get(names[0], weight.shape)
                if _fits_in(shape, weight.shape):
                    expected |= dict.fromkeys(names, shape)
        return expected


def _fits_in(shape: Shape, whole: Shape) -> bool:
    return len(shape) == len(whole) and all(n <= m for n, m in zip(shape, whole, strict=True))


def _with_perplexity(event: Evaluated) -> Evaluated:
    """Put back an infinite perplexity, which JSON cannot hold."""
    if event.accuracy is None and event.perplexity is None:
        return dataclasses.replace(event, perplexity=math.inf)
    return event


def _surroundings() -> dict[str, str]:
    """Name what can change the bits of a run."""
    threads = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")
    return {
        **versions(),
        "machine": platform.machine(),
        "BLAS threads": threads or f"{os.cpu_count()} (all cores)",
    }


def _warn_of_other_software(stored: StoredState) -> None:
    if different := differences(stored.progress.versions, _surroundings()):
        logger.warning(
            "the rest of the run may have other bits than an unbroken one:\n%s",
            listed(different),
        )
