"""Translate module paths between this library and a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PathMap"]


@dataclass(frozen=True)
class PathMap:
    """Pairs of module paths, ours and the checkpoint's, with `#` for a layer's number.

    A longer path, such as a weight's, is translated by its longest known beginning; a path without
    a known beginning stays as it is.
    """

    pairs: Mapping[str, str]

    def theirs(self, path: str) -> str:
        """Translate our path to the checkpoint's."""
        return _translate(path, self.pairs)

    def ours(self, path: str) -> str:
        """Translate the checkpoint's path to ours."""
        return _translate(path, {theirs: ours for ours, theirs in self.pairs.items()})


def _translate(path: str, pairs: Mapping[str, str]) -> str:
    parts = path.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    pattern = [*parts[:place], "#", *parts[place + 1 :]] if place < len(parts) else parts
    for length in range(len(parts), 0, -1):
        known = pairs.get(".".join(pattern[:length]))
        if known is not None:
            number = parts[place] if place < length else "#"
            return ".".join([known.replace("#", number), *parts[length:]])
    return path
