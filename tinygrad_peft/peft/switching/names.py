"""The names of adapters, which are the names of their folders."""

import re
from collections.abc import Collection

from tinygrad_peft.errors import PeftError

__all__ = ["BASE", "check_name"]

BASE = "__base__"  # the name for no adapter, for a row of a batch, as in PEFT
LONGEST_NAME = 100  # as for the folders of steps; file systems hold 255 bytes, and paths 260
# Windows's devices, which are in every folder, and what training keeps beside an adapter's files.
RESERVED_NAMES = frozenset(
    (
        *("con", "prn", "aux", "nul", "checkpoints", "interrupted"),
        *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10)),
    )
)


def check_name(name: str, taken: Collection[str]) -> None:
    """Raise PeftError unless the name is free and valid for an adapter."""
    if name in taken:
        raise PeftError(f"adapter {name!r} already exists")
    # Folders of steps begin with their number, and an adapter's folder may be beside them.
    if re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII) is None or name == BASE:
        raise PeftError(
            f"adapter name: expected a letter, then letters, digits, _ and - (it names a folder), "
            f"got {name!r:.200}"
        )
    if len(name) > LONGEST_NAME:
        raise PeftError(
            f"adapter name: expected at most {LONGEST_NAME} characters (it names a folder), got "
            f"{len(name):,}: {name!r:.60}..."
        )
    if name.lower() in RESERVED_NAMES:
        raise PeftError(f"adapter name: {name!r} is reserved, and cannot name an adapter's folder")
