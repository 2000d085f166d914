"""What a model is called where it came from, for the adapters that are made for it."""

import os
from pathlib import Path

from tinygrad_peft.models.fetch import cache_folder
from tinygrad_peft.models.fetch.artifacts import ARTIFACTS

__all__ = ["name_and_revision"]


def name_and_revision(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """A model's name, and its revision where it is the hub's.

    `organisation/name` and the commit for what the hub's cache holds, the artefact's name for what
    was fetched, and otherwise the path as it is given: no path of a cache, which means nothing on
    another machine.
    """
    given = os.fspath(path)
    if Path(given).name in ("", ".."):  # "." means nothing elsewhere
        given = Path(given).absolute().resolve().name or given
    match Path(given).parts:  # as huggingface_hub lays out its cache
        case (*_, repository, "snapshots", commit) if repository.startswith("models--"):
            return repository.removeprefix("models--").replace("--", "/"), commit
    place, cache = Path(given).absolute(), cache_folder().absolute()
    fetched = [a.name for a in ARTIFACTS if place.is_relative_to(cache / a.name)]
    return (fetched[0] if fetched else given), None
