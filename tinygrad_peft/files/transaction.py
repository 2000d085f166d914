"""Saves that happen whole or not at all: `saving`, and `settled` for readers.

    with saving(folder) as save:
        write(save.path("model.safetensors"))
        write(save.path("config.json"))
        save.remove("model.safetensors.index.json")

The block writes beside the folder's own files. At its end the files are brought to the disk, one
rename makes the save happen, and the files are moved into place. A process that is killed before
the rename leaves the folder as it was. After it, whoever reads or writes the folder next finishes
the move (`settled`).
"""

import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files.claims import HAS_LOCKS, real_path, refusal, shared_claim
from tinygrad_peft.files.journal import PREFIX, Journal, Stage, stages_in

__all__ = ["Transaction", "replacing", "saving", "settled"]

_PATIENCE = 10.0  # seconds to wait for another process that saves
_PAUSE = 0.1  # seconds between two looks at what it does

_MOVING = threading.RLock()  # one thread at a time carries out journals
_OPEN: dict[Path, "Transaction"] = {}  # by the folder of the new files


class Transaction:
    """One save, or the part of it that goes into a subfolder.

    Attributes:
        folder: the folder that is saved into, as it is before the save.
        staged: the folder in which the new files wait. Whatever is written into it is saved, by
            any function, and `saving` it takes part in this save.
    """

    def __init__(self, folder: Path, staged: Path, stale: set[Path]) -> None:
        self.folder = folder
        self.staged = staged
        self._stale = stale

    def path(self, name: str) -> Path:
        """Return the path to write a file to; `name` may have folders, as in "part/a.json"."""
        path = self.staged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def within(self, name: str) -> "Transaction":
        """Return the part of this save that goes into a subfolder."""
        return Transaction(self.folder / name, self.staged / name, self._stale)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files with the save, unless it writes them anew. They may be missing."""
        self._stale.update(self.folder / name for name in names)


@contextmanager
def saving(folder: Path, *, size: int = 0) -> Iterator[Transaction]:
    """Save files into a folder, all of them or none. Makes the folder if it is missing.

    Within the block of another save, into the folder of its new files, it is a part of that save.
    Otherwise the save happens at the end of the block, and not if the block raises. `size` is the
    number of bytes that will be written, if known.

    Raises CheckpointError for a full disk, a folder that cannot be written, and a folder that
    another process has claimed.
    """
    place = folder.absolute()
    outer = _outer(place)
    if outer is not None:
        with _named(outer.folder):
            _require_space(outer.folder, size)
            place.mkdir(parents=True, exist_ok=True)
        yield outer
        return
    folder = real_path(folder)
    with _named(folder), _claimed(folder):
        _tidy(folder)
        _require_space(folder, size)
        with _staged(folder) as transaction:
            yield transaction


def settled(folder: Path) -> Path:
    """Finish a save that was broken off while its files were moved; return the folder.

    Everything that reads several files of a folder calls it first. A save that had not happened yet
    is left alone. Nothing is written to a folder without a broken save.

    Raises CheckpointError if it cannot be finished: the folder is read-only, the files are damaged,
    or another process is at it for too long.
    """
    place = real_path(folder)
    for stage in stages_in(place):
        _finish(stage)
    for stage in stages_in(place.parent):
        if _concerns(stage, place):
            _finish(stage)
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write one file to, and move it to `path` if the block succeeds.

    Raises what `saving` raises.
    """
    with saving(path.parent) as save:
        yield save.path(path.name)


# ---------- a save ----------


def _outer(place: Path) -> Transaction | None:
    """Return the open save whose new files are in a folder, or in one above it."""
    for above in (place, *place.parents):
        if above in _OPEN:
            name = place.relative_to(above).as_posix()
            return _OPEN[above] if name == "." else _OPEN[above].within(name)
    return None


@contextmanager
def _staged(folder: Path) -> Iterator[Transaction]:
    stage = Stage(folder / f"{PREFIX}{secrets.token_hex(8)}")
    stale: set[Path] = set()
    transaction = _OPEN[stage.new] = Transaction(folder, stage.new, stale)
    try:
        stage.new.mkdir(parents=True)
        yield transaction
        journal = Journal.of(stage, [path.relative_to(folder).as_posix() for path in stale])
        with _MOVING:
            journal.write(stage)
            _move(journal, stage)
    except BaseException:
        if not stage.is_committed:
            shutil.rmtree(stage.path, ignore_errors=True)
        raise
    finally:
        del _OPEN[stage.new]


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    with shared_claim(folder, _PATIENCE) as ours:
        if not ours:
            raise refusal(folder)
        yield


def _move(journal: Journal, stage: Stage) -> None:
    try:
        journal.carry_out(stage)
    except OSError as error:
        raise CheckpointError(
            f"{stage.folder}: the new files are complete in {stage.path}, and cannot be moved: "
            f"{error.strerror or error}; the next reader or save tries again"
        ) from error


def _tidy(folder: Path) -> None:
    """Finish or remove what broken saves have left; the caller has claimed the folder."""
    with _MOVING:
        for stage in stages_in(folder):
            if stage.new in _OPEN:
                continue  # of another thread
            if stage.is_committed:
                _carry_out(stage)
            elif HAS_LOCKS:  # else its process may be alive
                shutil.rmtree(stage.path)


def _require_space(folder: Path, size: int) -> None:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise CheckpointError(
            f"{folder} cannot be written: expected {size / 1e6:,.1f} MB free on its disk, "
            f"got {free / 1e6:,.1f} MB"
        )


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Raise the system's errors as CheckpointError, with the folder."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error


# ---------- a broken save ----------


def _finish(stage: Stage) -> None:
    """Carry out a save that has happened, unless its own process does so meanwhile."""
    until = time.monotonic() + _PATIENCE
    try:
        while stage.is_committed:
            with shared_claim(stage.folder, _PAUSE) as ours, _MOVING:
                if ours and stage.is_committed:
                    _carry_out(stage)
            if not ours and time.monotonic() > until:
                raise refusal(stage.folder)
    except (OSError, CheckpointError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise CheckpointError(
            f"a save into {stage.folder} was broken off, and cannot be finished: {why}"
        ) from error


def _carry_out(stage: Stage) -> None:
    if not _is_by_owner_of(stage.folder, stage):
        raise CheckpointError(f"{stage.path} belongs to another user")
    journal = Journal.found(stage)
    journal.check(stage)
    journal.carry_out(stage)


def _concerns(stage: Stage, folder: Path) -> bool:
    """Return True if a save into the folder above, by this folder's owner, changes its files."""
    owned = folder if folder.exists() else stage.folder
    if not stage.is_committed or not _is_by_owner_of(owned, stage):
        return False
    try:
        journal = Journal.found(stage)
    except CheckpointError:
        if not stage.is_committed:
            return False  # finished meanwhile
        raise
    paths = (*(file.path for file in journal.files), *journal.removed)
    return any(path.startswith(f"{folder.name}/") for path in paths)


def _is_by_owner_of(folder: Path, stage: Stage) -> bool:
    """Return True unless a save is by somebody else than a folder's or this process's owner."""
    if os.name == "nt":
        return True
    return stage.path.lstat().st_uid in (os.geteuid(), folder.stat().st_uid)
