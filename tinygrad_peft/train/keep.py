"""Weights worth keeping: in memory, and in a folder."""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tinygrad_peft.nn.module import Parameter

__all__ = ["Keeper", "Save", "replace_files"]

Save: TypeAlias = Callable[[Path], None]  # writes the model's weights into a folder


class Keeper:
    """Holds the last good values of the trained weights, and has them written to a folder."""

    def __init__(self, weights: Iterable[Parameter], out: Path | None, save: Save | None) -> None:
        self.weights = list(weights)
        self.out = out
        self.save = save
        self.saved_to: Path | None = None
        self.remember(step=0)

    def remember(self, *, step: int) -> None:
        """Hold the weights as they are now, after `step`."""
        self.kept = [weight.data.copy() for weight in self.weights]
        self.kept_step = step

    def restore(self) -> None:
        """Put the weights back to what is held."""
        for weight, kept in zip(self.weights, self.kept, strict=True):
            weight.data[...] = kept

    def are_finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(np.isfinite(weight.data).all()) for weight in self.weights)

    def keep(self, *, step: int) -> None:
        """Remember the weights, and have them saved."""
        self.remember(step=step)
        if self.out is not None:
            self._write(self.out)

    def write_beside(self) -> None:
        """Have the weights as they are saved; a checkpoint stays, and they go to `interrupted`."""
        if self.out is not None:
            self._write(self.out / "interrupted" if self.saved_to else self.out)

    def whereabouts(self) -> str:
        """Where the last good weights are, in words."""
        kept = f"of step {self.kept_step}" if self.kept_step else "of the start"
        if self.saved_to is None:
            return f"the model has its last good weights again, {kept}; none had been saved"
        return f"the last good checkpoint, {kept}, is kept in {self.saved_to} and in the model"

    def _write(self, folder: Path) -> None:
        assert self.save is not None, "out and save go together"
        replace_files(folder, self.save)
        self.saved_to = folder


def replace_files(folder: Path, save: Save) -> None:
    """Have `save` write files, and put them into `folder` only when all of them are there."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        save(made)
        for path in sorted(made.rglob("*")):
            target = folder / path.relative_to(made)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)
    finally:
        shutil.rmtree(made)
