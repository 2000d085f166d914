"""Checks of the folder that a command writes."""

import os
from collections.abc import Collection
from pathlib import Path

import click

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.files import claimed, refuse_earlier_work
from tinygrad_peft.files.earlier import HELD

__all__ = ["check_output"]


def check_output(
    out: Path, *, refused: Collection[str] = HELD.keys(), overwrite: bool | None = None
) -> None:
    """Claim the folder that the command will write, until its end, before any time is spent.

    `refused` are files whose folder holds earlier work, which the command's must not be mixed with,
    unless it may `overwrite` it (None: the command has no such option).

    Raises ConfigError for earlier work and a place that cannot be written; CheckpointError if
    another run writes there.
    """
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ConfigError(f"--out {out}: {place} is a file, expected a folder")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"--out {out}: no right to write in {place}")
    click.get_current_context().with_resource(claimed(out))
    if not overwrite:
        instead = "or remove this one first" if overwrite is None else "or give --overwrite"
        refuse_earlier_work(out, refused, where=f"--out {out}", instead=instead)
