"""The journal of one save, and carrying it out.

folder/.saving-1f2e3d4c/new/           the new files, complete
folder/.saving-1f2e3d4c/journal.json   renamed into place last: from then on the save has happened

A journal is carried out in an order that never puts new weights beside old settings:

    remove old settings -> remove what is stale -> move new weights -> move new settings

Settings are JSON files. Without them no program opens the folder.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from tinygrad_peft.errors import CheckpointError, told
from tinygrad_peft.files.reading import decode_json_object, read_bytes, sha256_of

__all__ = ["Journal", "NewFile", "Stage", "is_plain_path", "stages_in", "sync_folder"]

PREFIX = ".saving-"
_LARGEST_JOURNAL = 10_000_000  # bytes; 50,000 files
_DEEPEST = 8  # folders within folders


@dataclass(frozen=True)
class Stage:
    """The folder in which one save is prepared, within the folder that it changes."""

    path: Path

    @property
    def folder(self) -> Path:
        """The folder that the save changes."""
        return self.path.parent

    @property
    def new(self) -> Path:
        """The new files."""
        return self.path / "new"

    @property
    def journal(self) -> Path:
        """The file whose presence says that the save has happened."""
        return self.path / "journal.json"

    @property
    def is_committed(self) -> bool:
        """True once the save has happened."""
        return os.path.lexists(self.journal)

    def discard(self) -> None:
        """Remove the stage, the journal first."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.path)


def stages_in(folder: Path) -> list[Stage]:
    """List the saves that have begun in a folder and not ended, finished or broken off."""
    try:
        with os.scandir(folder) as found:
            names = [e.name for e in found if e.name.startswith(PREFIX)]
    except OSError:
        return []  # the caller says what is wrong with the folder
    paths = (folder / name for name in sorted(names))
    return [Stage(path) for path in paths if path.is_dir() and not path.is_symlink()]


class NewFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that a save writes; `path` is relative, with "/" on every system."""

    path: str
    size: int
    sha256: str


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that one save changes."""

    format: Literal[1]
    files: list[NewFile]
    removed: list[str]

    @classmethod
    def of(cls, stage: Stage, stale: Iterable[str]) -> "Journal":
        """Describe the new files of a stage, and bring them and their folders to the disk.

        `stale` are files to remove, unless they are written anew.

        Raises CheckpointError for new files that are not plain files, and for places in the folder
        that cannot be written.
        """
        paths, folders = _tree(stage.new)
        files = [_brought_to_disk(stage.new, path) for path in paths]
        for folder in (*folders, stage.path, stage.folder):
            sync_folder(folder)
        removed = [name for name in stale if os.path.lexists(stage.folder / name)]
        journal = cls(1, files, sorted(set(removed) - set(paths)))
        journal._check_places(stage)
        return journal

    def write(self, stage: Stage) -> None:
        """Write the journal into its stage, whole, and onto the disk: now the save has happened."""
        draft = stage.path / "journal.draft"
        with draft.open("xb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(stage.journal)
        sync_folder(stage.path)

    @classmethod
    def found(cls, stage: Stage) -> "Journal":
        """Read the journal that a stage was found with, which anybody may have written.

        Raises CheckpointError for an invalid one.
        """
        where = str(stage.journal)
        if stage.journal.is_symlink():
            raise CheckpointError(f"{where} is a link: expected a file")
        raw = decode_json_object(read_bytes(stage.journal, _LARGEST_JOURNAL), where)
        try:
            return msgspec.convert(raw, cls)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"invalid journal of a save: {where}: {error}") from None

    def check(self, stage: Stage) -> None:
        """Raise CheckpointError if it does not fit its stage.

        That is for paths out of the folder or through a link, and for files that are missing,
        damaged, or not in the journal.
        """
        self._check_places(stage)
        problems = [p for file in self.files for p in _damage(stage, file)]
        problems += _strangers(stage, {file.path for file in self.files})
        if problems:
            raise CheckpointError(f"{stage.journal} does not fit its files:{told(problems)}")

    def carry_out(self, stage: Stage) -> None:
        """Take the folder from old to new, or on from where an earlier call stopped."""
        folder, new = stage.folder, stage.new
        waiting = [file.path for file in self.files if os.path.lexists(new / file.path)]
        settings = [path for path in waiting if _is_settings(path)]
        if len(self.files) + len(self.removed) > 1:  # a lone file is replaced in one step
            self._remove(folder, [*settings, *filter(_is_settings, self.removed)])
        self._remove(folder, [path for path in self.removed if not _is_settings(path)])
        _move_new_folders(new, folder)
        left = [path for path in waiting if os.path.lexists(new / path)]
        self._move(stage, [path for path in left if not _is_settings(path)])
        self._move(stage, [path for path in left if _is_settings(path)])
        stage.discard()

    def _move(self, stage: Stage, paths: list[str]) -> None:
        for path in paths:
            target = stage.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            (stage.new / path).replace(target)
        _sync_parents(stage.folder, paths)

    def _remove(self, folder: Path, paths: list[str]) -> None:
        """Remove files, and folders that are empty then and get no new file."""
        for path in paths:
            (folder / path).unlink(missing_ok=True)
        _sync_parents(folder, paths)
        wanted = {parent for file in self.files for parent in PurePosixPath(file.path).parents}
        for path in paths:
            for parent in PurePosixPath(path).parents[:-1]:
                place = folder / parent
                if parent not in wanted and place.is_dir() and not any(place.iterdir()):
                    place.rmdir()

    def _check_places(self, stage: Stage) -> None:
        """Raise CheckpointError unless all paths are inside the folder and can be written."""
        paths = [*(file.path for file in self.files), *self.removed]
        outside = [f"{path!r:.200}" for path in paths if not is_plain_path(path)]
        if outside:
            raise CheckpointError(
                f"{stage.folder}: expected plain relative paths, got:{told(outside)}"
            )
        if len(set(paths)) < len(paths):
            raise CheckpointError(f"{stage.journal}: expected each path once")
        device = stage.folder.stat().st_dev
        parents = {parent for path in paths for parent in PurePosixPath(path).parents}
        problems = [p for each in sorted(parents) for p in _faults(stage.folder / each, device)]
        problems += [f"{p} is a folder" for p in paths if (stage.folder / p).is_dir()]
        if problems:
            raise CheckpointError(f"{stage.folder} cannot be written:{told(problems)}")


def is_plain_path(path: str) -> bool:
    """Return True for a path that stays inside its folder on any system, and is not a stage's."""
    parts = path.split("/")
    return len(parts) <= _DEEPEST and all(
        re.fullmatch(r'[^\x00-\x1f\\/:*?"<>|]{1,200}', part)
        and part.strip(" .") != ""
        and not part.startswith(PREFIX)
        for part in parts
    )


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name != "nt":  # it opens no folder
        _sync(folder)


def _is_settings(path: str) -> bool:
    return path.endswith(".json")


def _tree(top: Path) -> tuple[list[str], list[Path]]:
    """List the files below a folder by their relative paths, and the folders, deepest first."""
    paths, folders = [], [top]
    for place in sorted(top.rglob("*")):
        mode = place.lstat().st_mode
        if stat.S_ISDIR(mode):
            folders.append(place)
        elif stat.S_ISREG(mode):
            paths.append(place.relative_to(top).as_posix())
        else:
            raise CheckpointError(f"{place} cannot be saved: expected a plain file")
    return paths, folders[::-1]


def _brought_to_disk(top: Path, path: str) -> NewFile:
    file = top / path
    _sync(file)
    return NewFile(path, file.stat().st_size, sha256_of(file))


def _sync(path: Path) -> None:
    # Windows brings to the disk only what is open for writing; elsewhere a file may be read-only.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damage(stage: Stage, expected: NewFile) -> Iterator[str]:
    """Say what is wrong with a new file, which may be in its place already."""
    staged = stage.new / expected.path
    place = staged if os.path.lexists(staged) else stage.folder / expected.path
    if place.is_symlink() or not place.is_file():
        yield f"{place} is missing"
        return
    size = place.stat().st_size
    if size != expected.size:
        yield f"{place}: expected {expected.size:,} bytes, got {size:,}"
    elif sha256_of(place) != expected.sha256:
        yield f"{place}: expected another SHA-256"


def _strangers(stage: Stage, expected: set[str]) -> Iterator[str]:
    """Say what is among the new files that no save has put there."""
    if stage.new.is_symlink():
        yield f"{stage.new} is a link"
    elif stage.new.is_dir():
        paths, _ = _tree(stage.new)
        yield from (f"{stage.new / p} is not in the journal" for p in paths if p not in expected)


def _faults(folder: Path, device: int) -> Iterator[str]:
    """Say why files cannot be moved into a folder, which may be missing."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink():
        yield f"{folder} is a link"
    elif not folder.is_dir():
        yield f"{folder} is a file"
    elif folder.stat().st_dev != device:
        yield f"{folder} is on another disk"
    elif not os.access(folder, os.W_OK):
        yield f"no right to write in {folder}"


def _move_new_folders(new: Path, folder: Path) -> None:
    """Move folders that the target does not have yet, each in one step."""
    names = [place.name for place in sorted(new.iterdir()) if place.is_dir()]
    missing = [name for name in names if not os.path.lexists(folder / name)]
    for name in missing:
        (new / name).rename(folder / name)
    _sync_parents(folder, missing)


def _sync_parents(folder: Path, paths: Iterable[str]) -> None:
    for parent in sorted({(folder / path).parent for path in paths}):
        if parent.is_dir():
            sync_folder(parent)
