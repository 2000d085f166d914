"""Claims of folders: one process at a time writes into a folder.

A claim is a lock on the file `.claim` in the folder. The system releases it when the process ends,
however it ends, so a claim is never left behind. On systems and disks without these locks, claims
hold between the threads of one process only.
"""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from tinygrad_peft.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["CLAIM", "HAS_LOCKS", "claimed", "real_path", "refusal", "shared_claim"]

CLAIM = ".claim"
HAS_LOCKS = fcntl is not None
_PAUSE = 0.02  # seconds between two attempts
_LARGEST_CLAIM = 1_000  # bytes
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass
class _Claim:
    """A claim of this process, which may be held several times."""

    file: int  # its descriptor
    process: int
    thread: int
    started: str
    made: bool  # True if the folder was missing
    held: int = 0


class _Facts(msgspec.Struct):
    """The content of a claim's file."""

    process: int
    started: str


_GUARD = threading.RLock()
_CLAIMS: dict[Path, _Claim] = {}


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Claim a folder for this thread while the block runs.

    A missing folder is made, and removed in the end if it is empty then.

    The same thread may claim it again within the block, and all threads of this process may save
    into it.

    Raises CheckpointError if another process or thread has claimed it, with the process and the
    time of its claim, or if the folder cannot be written.
    """
    with _held(folder, by_thread=True) as ours:
        if not ours:
            raise refusal(folder)
        yield


@contextmanager
def shared_claim(folder: Path, patience: float) -> Iterator[bool]:
    """Share the claim of this process, or claim the folder for the time of the block.

    Yields False if another process still has the claim after `patience` seconds.

    Raises CheckpointError if the folder cannot be written.
    """
    until = time.monotonic() + patience
    while True:
        with _held(folder, by_thread=False) as ours:
            if ours or time.monotonic() >= until:
                yield ours
                return
        time.sleep(_PAUSE)


def refusal(folder: Path) -> CheckpointError:
    """Return the error for a folder that another process or thread has claimed."""
    place = real_path(folder)
    own = _CLAIMS.get(place)
    facts = _Facts(own.process, own.started) if own is not None else _facts(place)
    who = f"process {facts.process}, since {facts.started}" if facts else "another process"
    return CheckpointError(
        f"{place} is being written by {who}: wait for its end, or name another folder"
    )


def real_path(folder: Path) -> Path:
    """Return a folder's absolute path without links."""
    return Path(os.path.realpath(folder))


@contextmanager
def _held(folder: Path, *, by_thread: bool) -> Iterator[bool]:
    place = real_path(folder)
    claim = _taken(place, by_thread=by_thread)
    try:
        yield claim is not None
    finally:
        if claim is not None:
            with _GUARD:
                claim.held -= 1
                if not claim.held and claim.process == os.getpid():
                    del _CLAIMS[place]
                    _release(place, claim)


def _taken(place: Path, *, by_thread: bool) -> _Claim | None:
    """Return the claim of a folder with one more holder, or None if another has it."""
    with _GUARD:
        claim = _CLAIMS.get(place)
        if claim is not None and claim.process != os.getpid():
            del _CLAIMS[place]  # of the process that this one was forked from
            claim = None
        if claim is None:
            claim = _new_claim(place)
        elif by_thread and claim.thread != threading.get_ident():
            return None
        if claim is not None:
            _CLAIMS[place] = claim
            claim.held += 1
        return claim


def _new_claim(place: Path) -> _Claim | None:
    """Claim a folder, or return None if another process has it."""
    made = not place.exists()
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = os.open(place / CLAIM, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not _is_locked(file) or not _is_at(file, place / CLAIM):
                os.close(file)
                return None
            os.ftruncate(file, 0)
            os.write(file, msgspec.json.encode(_Facts(os.getpid(), now)))
        except BaseException:
            os.close(file)
            raise
    except OSError as error:
        raise CheckpointError(f"{place} cannot be written: {error.strerror or error}") from error
    return _Claim(file, os.getpid(), threading.get_ident(), now, made)


def _is_locked(file: int) -> bool:
    """Lock an open file; return False if another process has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def _is_at(file: int, path: Path) -> bool:
    """Return True unless the file was removed, by the one that held it, before it was locked."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _release(place: Path, claim: _Claim) -> None:
    with suppress(OSError):
        (place / CLAIM).unlink()  # while it is locked: see _is_at
    os.close(claim.file)
    if claim.made:
        with suppress(OSError):  # there is something in it
            place.rmdir()


def _facts(place: Path) -> _Facts | None:
    try:
        with (place / CLAIM).open("rb") as file:
            return msgspec.json.decode(file.read(_LARGEST_CLAIM), type=_Facts)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None  # released, or not written yet
