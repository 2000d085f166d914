"""Kill a save before each of its changes to the file system, and look at what it leaves.

Each kill is a fork that ends by `os._exit` before the n-th change: no handler, no `finally` and no
buffer acts after it, as with SIGKILL. At an fsync the file is cut in half first, since a power cut
may lose what was not brought to the disk.
"""

import os
import shutil
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
KILLED, FAILED = 99, 98
Change: TypeAlias = tuple[str, str]  # its kind and its path


@dataclass
class Changes:
    """Every change to the file system, in order, from `start` on.

    Exits before a change when `stop` says so, of a list that ends with that change.
    """

    stop: Callable[[list[Change]], bool] = field(default=lambda _: False)
    seen: list[Change] = field(default_factory=list)

    def start(self) -> None:
        """Watch this process until it ends."""
        os.fsync = self._fsync
        sys.addaudithook(self._heard)

    def _fsync(self, fd: "FileDescriptorLike") -> None:
        """Stand in for os.fsync, which raises no audit event; a kill loses nothing without it."""
        assert isinstance(fd, int)
        self._before("fsync", str(Path(f"/proc/self/fd/{fd}").readlink()), fd)

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and not isinstance(path, int):
                self._before("write", str(path))
        elif event in CHANGES:
            self._before(event.removeprefix("os."), str(arguments[0]))

    def _before(self, kind: str, path: str, file: int | None = None) -> None:
        self.seen.append((kind, path))
        if self.stop(self.seen):
            if file is not None and stat.S_ISREG(os.fstat(file).st_mode):
                os.truncate(path, os.fstat(file).st_size // 2)
            os._exit(KILLED)


def in_fork(act: Callable[[], None]) -> int:
    """Run something in a forked process, and return its exit status; 0 without an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest's workers have threads
        child = os.fork()
    if child == 0:
        status = FAILED
        try:
            act()
            status = 0
        except BaseException:  # noqa: BLE001 - nothing may leave the fork
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_folders(old: Path, save: Callable[[Path], None], work: Path) -> Iterator[Path]:
    """Yield a copy of `old` for each change, left by a save into it killed before that change.

    The last one is left by the whole save. `old` may be missing, for a save into a new folder.
    """
    for number in range(1, 10_000):
        folder = work / str(number)
        if old.exists():
            shutil.copytree(old, folder, symlinks=True)

        def act(folder: Path = folder, number: int = number) -> None:
            Changes(lambda seen: len(seen) == number).start()
            save(folder)

        status = in_fork(act)
        assert status in (0, KILLED), f"the save failed before change {number}: exit {status}"
        yield folder
        if status == 0:
            return
    raise AssertionError("the save does not end")
