"""Pictures of the documents, drawn from computed figures: `python -m docs.pictures` writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from docs.pictures import block, error, levels, low_rank, memory, seam, spectrum
from docs.pictures.svg import Picture

__all__ = ["FOLDER", "PICTURES"]

FOLDER = Path(__file__).parent

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
