"""Name a model by its source, for the adapters trained on it."""

import os
import re
from pathlib import Path

from tinygrad_peft.models.fetch import cache_folder
from tinygrad_peft.models.fetch.artifacts import ARTIFACTS

__all__ = ["name_and_revision"]

# The layout of huggingface_hub's cache.
_IN_CACHE = re.compile(
    r".*/models--(?P<repository>[^/]+)/snapshots/(?P<commit>[^/]+)(?P<within>/.+)?"
)


def name_and_revision(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return a model's name, and its revision if it comes from the hub.

    `organisation/name`, with the folder in it if any, and the commit for one in the hub's cache;
    the artefact's name for a fetched one; else the path as given: never a path in a cache, which
    means nothing on another machine.
    """
    given = os.fspath(path)
    if Path(given).name in ("", ".."):  # "." means nothing elsewhere
        given = Path(given).absolute().resolve().name or given
    if cached := _IN_CACHE.fullmatch(Path(given).as_posix()):
        name = cached["repository"].replace("--", "/") + (cached["within"] or "")
        return name, cached["commit"]
    place, cache = Path(given).absolute(), cache_folder().absolute()
    fetched = [a.name for a in ARTIFACTS if place.is_relative_to(cache / a.name)]
    return (fetched[0] if fetched else given), None
