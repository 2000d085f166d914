"""`tinygrad-peft fetch`, and names in the place of paths."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tinygrad_peft.cli.output import emit
from tinygrad_peft.errors import DataError, nearest
from tinygrad_peft.models.artifacts import ARTIFACTS
from tinygrad_peft.models.fetch import fetch, find_fetched

__all__ = ["data_path", "fetch_all", "model_path"]


def fetch_all(names: Sequence[str], *, verify: bool, as_json: bool) -> None:
    """Get all of `names` into the cache and print where they are."""
    fetched = [
        fetch(name, verify=verify, progress=lambda line: print(line, file=sys.stderr))
        for name in names
    ]
    values = {f.name: str(f.path) for f in fetched}
    emit(values, [f"{name}: {path}" for name, path in values.items()], as_json=as_json)


def model_path(text: str) -> Path:
    """A model's path: what `text` says, or where a fetched model of that name is.

    Raises DataError for a name that was not fetched, and for what is neither.
    """
    return _fetched(text) or _existing(text, "model")


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


def _existing(text: str, what: str) -> Path:
    if not Path(text).exists():
        raise DataError(f"{text}: no such {what}{nearest(text, _names())}")
    return Path(text)


def _names() -> list[str]:
    return [artifact.name for artifact in ARTIFACTS]
