"""Paths of models, adapters and data, given as paths or as names: fetched, or on the hub."""

import re
from pathlib import Path

from tinygrad_peft.errors import DataError, FetchError, nearest
from tinygrad_peft.models import refuse_adapter
from tinygrad_peft.models.fetch import (
    ARTIFACTS,
    HubKind,
    download_from_hub,
    find_fetched,
    hub_name,
)

__all__ = ["adapter_path", "data_path", "model_path"]


def model_path(text: str, kind: str = "model") -> Path:
    """Return the path of a model: `text` itself, or where the model of that name is.

    `kind` names the missing thing in the error.

    Raises DataError for a name that was not fetched, or a path that does not exist;
    CheckpointError for an adapter's folder; what `tinygrad_peft.models.fetch.download_from_hub`
    raises for a hub's name.
    """
    found = _fetched(text) or _from_hub(text, "model") or _existing(text, kind)
    if kind == "model":
        refuse_adapter(found)
    return found


def adapter_path(given: Path) -> Path:
    """Return the path of an adapter: `given` itself, or where the hub's adapter of that name is.

    Raises what `tinygrad_peft.models.fetch.download_from_hub` raises for a hub's name.
    """
    return _from_hub(given.as_posix(), "adapter") or given


def data_path(text: str, part: str) -> Path:
    """Return a data file's path: `text`, or a part ("train", "test") of a fetched data set.

    Raises DataError for a name that was not fetched, or a path that does not exist.
    """
    folder = _fetched(text)
    return folder / f"{part}.jsonl" if folder else _existing(text, "data file")


def _fetched(name: str) -> Path | None:
    """Find an artefact in the cache, unless a path has its name."""
    if Path(name).exists() or name not in _names():
        return None
    found = find_fetched(name)
    if found is None:
        raise DataError(f"{name} is not in the cache: run tinygrad-peft fetch {name}")
    return found.path


def _from_hub(name: str, kind: HubKind) -> Path | None:
    """Download a repository or a folder in one, unless a path has its name, or begins with it."""
    named = None if Path(name).exists() else hub_name(name)
    if named is None or (named.folder and Path(name.partition("/")[0]).is_dir()):
        return None
    repository, folder, revision = named
    try:
        return download_from_hub(repository, revision=revision, kind=kind, folder=folder)
    except FetchError as error:
        raise FetchError(f"no such {kind} here, nor from the hub: {error}") from error


def _existing(text: str, kind: str) -> Path:
    if not Path(text).exists():
        close = nearest(text, _names())
        if not close and kind != "data file" and re.fullmatch(r"[\w.-]+", text, re.ASCII):
            close = f" (on the hub a name has its organisation: organisation/{text})"
        raise DataError(f"{text}: no such {kind}{close}")
    return Path(text)


def _names() -> list[str]:
    return [artifact.name for artifact in ARTIFACTS]
