"""Another place for weights whose own place cannot be written."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tinygrad_peft.errors import CheckpointError

__all__ = ["saved_elsewhere"]


def saved_elsewhere(folder: Path, save: Callable[[Path], None]) -> Path | None:
    """Save into a new folder beside `folder`, or else among temporary files; return it.

    Returns None if neither can be written.
    """
    for place in (folder.parent, Path(tempfile.gettempdir())):
        try:
            made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-rescued-", dir=place))
        except OSError:
            continue
        try:
            save(made)
        except (CheckpointError, OSError):
            shutil.rmtree(made, ignore_errors=True)
        else:
            return made
    return None
