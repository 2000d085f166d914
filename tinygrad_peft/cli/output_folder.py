"""Checks of the folder that a command writes."""

import os
from pathlib import Path

from tinygrad_peft.errors import ConfigError

__all__ = ["check_output"]

HELD = {
    "config.json": "a model",
    "adapter_config.json": "an adapter",
    "recipe.json": "an adapter",
    "comparison.json": "a comparison",
}


def check_output(out: Path, *, refused: tuple[str, ...]) -> None:
    """Raise ConfigError unless a folder can be written at `out`, before any time is spent.

    `refused` are files whose folder holds earlier work, which the command's must not be mixed with.
    """
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ConfigError(f"--out {out}: {place} is a file, expected a folder")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"--out {out}: no right to write in {place}")
    for name in refused:
        if (out / name).exists():
            raise ConfigError(
                f"--out {out}: there is {HELD[name]} in it ({name}): name another folder, "
                "or remove this one first"
            )
