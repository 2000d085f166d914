"""The weights that a run keeps: in memory, and in a folder."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import saving
from tinygrad_peft.files.earlier import earlier_work
from tinygrad_peft.nn.module import Parameter
from tinygrad_peft.train.rescue import saved_elsewhere

__all__ = ["BestWeights", "Save"]

logger = logging.getLogger(__name__)

INTERRUPTED = "interrupted"

Save: TypeAlias = Callable[[Path], None]  # writes the model's weights into a folder


class BestWeights:
    """Hold the last good values of the trained weights, and write them to a folder.

    `optional` names files that `save` does not write each time; old ones are then removed. A save
    that fails is made in another folder, which the error names.

    Raises CheckpointError, before anything is trained, if `out` cannot be written.
    """

    def __init__(
        self,
        weights: Iterable[Parameter],
        out: Path | None,
        save: Save | None,
        optional: Sequence[str] = (),
    ) -> None:
        self.weights = list(weights)
        self.out = out
        self.save = save
        self.optional = optional
        self.saved_to: Path | None = None
        self.went_on = False  # after an interruption
        self.remember(step=0)
        if out is not None:
            self._probe(out)

    def remember(self, *, step: int) -> None:
        """Hold the weights as they are now, after `step`."""
        self.kept = [weight.data.copy() for weight in self.weights]
        self.kept_step = step

    def restore(self) -> None:
        """Put back the weights that are held."""
        for weight, kept in zip(self.weights, self.kept, strict=True):
            if weight.shape == kept.shape:
                weight.data[...] = kept
            else:  # it has shrunk since
                weight.replace_data(kept.copy())

    def are_finite(self) -> bool:
        """Return True if all weights are finite numbers."""
        return all(bool(np.isfinite(weight.data).all()) for weight in self.weights)

    def keep(self, *, step: int) -> None:
        """Remember the weights and save them."""
        self.remember(step=step)
        if self.out is not None:
            self._write(self.out)

    def write_beside(self) -> None:
        """Save the weights as they are: into `interrupted`, if the folder has a checkpoint."""
        if self.out is not None:
            self._write(self.out / INTERRUPTED if self.saved_to else self.out)

    def discard_interrupted(self) -> None:
        """Remove what `write_beside` has saved in `interrupted`: the run went on.

        Other files there stay, and all of them, with a warning, where that fails.
        """
        if self.out is None or not self.went_on:
            return
        old = [f"{INTERRUPTED}/{name}" for name in earlier_work(self.out / INTERRUPTED)]
        try:
            if old:
                with saving(self.out) as files:
                    files.remove(old)
        except CheckpointError as error:
            logger.warning("%s stays: %s", self.out / INTERRUPTED, error)

    def whereabouts(self) -> str:
        """Say in words where the last good weights are."""
        kept = f"of step {self.kept_step}" if self.kept_step else "of the start"
        if self.saved_to is None:
            return f"the model has its last good weights again, {kept}; nothing was saved"
        return f"the last good checkpoint, {kept}, is kept in {self.saved_to} and in the model"

    def _probe(self, out: Path) -> None:
        """Save nothing: a full disk or a folder that cannot be written is found before training."""
        with saving(out, size=sum(weight.data.nbytes for weight in self.weights)):
            pass

    def _write(self, folder: Path) -> None:
        assert self.save is not None, "out and save go together"
        try:
            with saving(folder) as files:
                files.remove(self.optional)
                self.save(files.staged)
        except CheckpointError as error:
            place = saved_elsewhere(folder, self.save)
            if place is None:
                raise
            raise CheckpointError(f"{error}; the weights are saved in {place} instead") from error
        self.saved_to = folder
