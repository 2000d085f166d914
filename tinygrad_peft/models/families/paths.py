"""What a module is called here, and what a checkpoint calls it."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PathMap"]


@dataclass(frozen=True)
class PathMap:
    """Pairs of module paths, ours and theirs, with `#` for a layer's number.

    A path below a pair's, such as a weight's, is translated by its longest known beginning, so
    every path has a translation; what no pair begins stays as it is.
    """

    pairs: Mapping[str, str]

    def theirs(self, path: str) -> str:
        """The checkpoint's path for ours."""
        return _translate(path, self.pairs)

    def ours(self, path: str) -> str:
        """Our path for the checkpoint's."""
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
