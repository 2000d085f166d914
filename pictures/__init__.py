"""The documents' pictures: `python -m pictures` writes them anew, each from figures it computes."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pictures import block, error, levels, low_rank, memory, seam, spectrum
from pictures.svg import Picture

__all__ = ["FOLDER", "PICTURES"]

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"

# By the names of the files in that folder.
PICTURES: Mapping[str, Callable[[], Picture]] = {
    "block": block.draw,
    "error": error.draw,
    "levels": levels.draw,
    "low-rank": low_rank.draw,
    "memory": memory.draw,
    "seam": seam.draw,
    "spectrum": spectrum.draw,
}
