"""`tinygrad-peft fetch`, and names in the place of paths: of what was fetched, and of the hub's."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tinygrad_peft.cli.output import emit
from tinygrad_peft.errors import DataError, FetchError, nearest
from tinygrad_peft.models.fetch import (
    ARTIFACTS,
    HubKind,
    download_from_hub,
    fetch,
    find_fetched,
    is_hub_name,
)

__all__ = ["adapter_path", "data_path", "fetch_all", "model_path"]


def fetch_all(names: Sequence[str], *, verify: bool, as_json: bool) -> None:
    """Get all of `names` into the cache and print where they are."""
    fetched = [
        fetch(name, verify=verify, progress=lambda line: print(line, file=sys.stderr))
        for name in names
    ]
    values = {f.name: str(f.path) for f in fetched}
    emit(values, [f"{name}: {path}" for name, path in values.items()], as_json=as_json)


def model_path(text: str, what: str = "model") -> Path:
    """A model's path: what `text` says, or where a model of that name is, fetched or of the hub.

    `what` is what an error calls that which is not there.

    Raises DataError for a name that was not fetched, and for what is none; what
    `tinygrad_peft.models.fetch.download_from_hub` raises for a hub's name.
    """
    return _fetched(text) or _of_hub(text, "model") or _existing(text, what)


def adapter_path(given: Path) -> Path:
    """An adapter's path: what is given, or where an adapter of that name on the hub is.

    Raises what `tinygrad_peft.models.fetch.download_from_hub` raises for a hub's name.
    """
    return _of_hub(given.as_posix(), "adapter") or given


def data_path(text: str, part: str) -> Path:
    """A data file's path: what `text` says, or a part ("train", "test") of a fetched data set.

    Raises DataError for a name that was not fetched, and for what is neither.
    """
    folder = _fetched(text)
    return folder / f"{part}.jsonl" if folder else _existing(text, "data file")


def _fetched(name: str) -> Path | None:
    """Where the cache has what is called `name`, unless a path is called so."""
    if Path(name).exists() or name not in _names():
        return None
    found = find_fetched(name)
    if found is None:
        raise DataError(f"{name} is not in the cache: run tinygrad-peft fetch {name}")
    return found.path


def _of_hub(name: str, kind: HubKind) -> Path | None:
    """Where the files of a repository are, unless a path is called so."""
    if Path(name).exists() or not is_hub_name(name):
        return None
    repository, _, revision = name.partition("@")
    try:
        return download_from_hub(repository, revision=revision or None, kind=kind)
    except FetchError as error:
        raise FetchError(f"no such {kind} here, nor from the hub: {error}") from error


def _existing(text: str, what: str) -> Path:
    if not Path(text).exists():
        raise DataError(f"{text}: no such {what}{nearest(text, _names())}")
    return Path(text)


def _names() -> list[str]:
    return [artifact.name for artifact in ARTIFACTS]
