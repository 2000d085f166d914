"""The checkpoints of a run: folders from which it goes on after it was stopped.

    out/checkpoints/step-00000120
    out/checkpoints/step-00000140

Each exists whole or not at all, as every save does. Older ones go when the new one is there.
"""

import logging
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tinygrad_peft.errors import CheckpointError, ConfigError, listed
from tinygrad_peft.files import saving, settled
from tinygrad_peft.files.claims import CLAIM
from tinygrad_peft.files.journal import PREFIX, stages_in
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.stored_state import StoredState, read_state

__all__ = [
    "CHECKPOINTS",
    "Checkpoints",
    "has_checkpoints",
    "newest_state",
    "refuse_unfinished",
    "stored_state",
]

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

_NAME = re.compile(r"step-\d{8,20}")


class Checkpoints:
    """The checkpoints of the run that writes into `out`; without it, or every 0 steps, none."""

    def __init__(self, out: Path | None, config: TrainConfig) -> None:
        self.folder = None if out is None or config.save_every == 0 else out / CHECKPOINTS
        self.config = config
        self._saved = self._ended = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Return True if a checkpoint is to be written after this step; ask after each one.

        By time it is written before `save_minutes` are over, if a step like the last would end
        after them.
        """
        now = time.perf_counter()
        last, self._ended = now - self._ended, now
        if self.folder is None:
            return False
        if self.config.save_every is not None:
            return step % self.config.save_every == 0
        return now - self._saved + last > self.config.save_minutes * 60

    def write(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a checkpoint, and remove the oldest. Log a warning where that fails."""
        if self.folder is None:
            return
        try:
            self._write(self.folder, f"step-{step:08}", write)
        except (CheckpointError, OSError) as error:
            logger.warning("no checkpoint of step %d: %s", step, error)
        self._saved = time.perf_counter()

    def discard(self) -> None:
        """Remove all checkpoints: the run is over. Other files in their folder stay."""
        if self.folder is not None and self.folder.is_dir():
            self.discard_after(-1)
            for stage in stages_in(self.folder):
                stage.discard()
            (self.folder / CLAIM).unlink(missing_ok=True)
            if not self.folder.is_symlink() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints after a step: broken ones, which a run has passed over."""
        if self.folder is not None:
            for path in _checkpoints(self.folder):
                if _step_of(path) > step:
                    _remove(path)

    def _write(self, folder: Path, name: str, write: Callable[[Path], None]) -> None:
        if (folder / name).exists():
            return  # the run was stopped right after it
        with saving(folder) as save:
            made = save.staged / name
            made.mkdir()
            write(made)
        for old in _checkpoints(folder)[self.config.keep :]:
            _remove(old)


def stored_state(out: Path | None, *, resume: bool | Path) -> StoredState | None:
    """Read the checkpoint that a run goes on from: None for a new run.

    True stands for the newest one in `out`. A path names a checkpoint in `out`, or anywhere for a
    run without `out`.

    Raises:
        ConfigError: a new run would lose the checkpoints of another, or a checkpoint is outside
            `out`.
        CheckpointError: no checkpoint, or only broken ones.
    """
    if resume is False:
        if out is not None:
            refuse_unfinished(out)
        return None
    if resume is not True:
        if out is not None and resume.resolve().parent != (out / CHECKPOINTS).resolve():
            raise ConfigError(f"resume: expected a checkpoint in {out / CHECKPOINTS}, got {resume}")
        return read_state(resume)
    if out is None:
        raise ConfigError("resume: expected a folder (out), or the path of a checkpoint")
    stored = newest_state(out)
    if stored is None:
        raise CheckpointError(f"{out} has no checkpoint to resume from")
    return stored


def newest_state(out: Path) -> StoredState | None:
    """Read the newest checkpoint of the run in a folder; None if it has no checkpoint.

    One that is broken is passed over with a warning. Raises CheckpointError if all are broken.
    """
    problems: list[str] = []
    for path in _checkpoints(out / CHECKPOINTS):
        try:
            stored = read_state(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            logger.warning("going on from %s: newer ones are broken:\n%s", path, listed(problems))
        return stored
    if problems:
        raise CheckpointError(f"{out}: every checkpoint is broken:\n{listed(problems)}")
    return None


def has_checkpoints(out: Path) -> bool:
    """Return True if a folder has checkpoints of a run, whole or broken."""
    return bool(_checkpoints(out / CHECKPOINTS))


def refuse_unfinished(out: Path) -> None:
    """Raise ConfigError if a folder has checkpoints, which a new run would lose."""
    if found := _checkpoints(out / CHECKPOINTS):
        raise ConfigError(
            f"{out} has an unfinished run, stopped after step {_step_of(found[0])}: go on with it "
            "by --resume (resume=True), name another folder, or remove its checkpoints first"
        )


def _checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints, the newest first."""
    if not folder.is_dir():
        return []
    settled(folder)
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and _is_real_folder(p)]
    return sorted(found, key=_step_of, reverse=True)


def _is_real_folder(path: Path) -> bool:
    """Return True for a folder that is not a link, as every checkpoint is."""
    return path.is_dir() and not path.is_symlink()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed at any time, no part of it is left under its name."""
    hidden = path.with_name(f"{PREFIX}{secrets.token_hex(8)}")  # the next save removes it
    path.rename(hidden)
    shutil.rmtree(hidden)
