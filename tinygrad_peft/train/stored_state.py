"""A checkpoint that is stored: its files, read and checked.

state.safetensors          the trained weights, the best ones, the optimiser's moments, the
                           random generators and the losses, in the dtypes of the run
running_state.safetensors  the running state of plugins, if they have one
state.json                 counts, evaluations, the facts that a run to go on must share
                           (`train.fingerprint`), and digests of the other files
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from safetensors.numpy import load_file

from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import CheckpointError, listed
from tinygrad_peft.files import read_json_object, sha256_of
from tinygrad_peft.models.hf.safetensors import read_header
from tinygrad_peft.train.events import Evaluated
from tinygrad_peft.train.running_state import RUNNING_STATE

__all__ = ["ARRAYS", "PROGRESS", "Progress", "StoredState", "digest", "read_state"]

ARRAYS, PROGRESS = "state.safetensors", "state.json"

_DTYPES = ("F64", "F32", "F16", "I64", "U64")

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of state.json."""

    format: Annotated[int, msgspec.Meta(ge=1, le=1)]
    step: _Count
    assessed: _Count
    best_step: _Count
    is_saved: bool
    tokens: _Count
    places: _Count
    step_seconds: _Seconds
    seconds: _Seconds
    extra_losses: dict[str, float]
    evaluations: list[Evaluated]
    facts: dict[str, object]
    versions: dict[str, str]
    digests: dict[str, str]


@dataclass(frozen=True, eq=False)
class StoredState:
    """A checkpoint that was read: its folder, its counts and its arrays by name."""

    folder: Path
    progress: Progress
    arrays: Mapping[str, AnyArray]

    def part(self, name: str) -> dict[str, AnyArray]:
        """Return the arrays under a name, by the rest of their names."""
        prefix = f"{name}:"
        return {k.removeprefix(prefix): a for k, a in self.arrays.items() if k.startswith(prefix)}


def read_state(folder: Path) -> StoredState:
    """Read a checkpoint.

    Raises CheckpointError if a file is missing, broken, or not the one that was written.
    """
    raw = read_json_object(folder / PROGRESS)
    try:
        progress = msgspec.convert(raw, Progress)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{folder / PROGRESS}: {error}") from None
    found = {n: digest(folder / n) for n in (ARRAYS, RUNNING_STATE) if (folder / n).is_file()}
    problems = [
        f"{name}: expected the file that was written, got {'another' if name in found else 'none'}"
        for name in {ARRAYS: "", **progress.digests, **found}
        if found.get(name) != progress.digests.get(name, "")
    ]
    if problems:
        raise CheckpointError(f"{folder}:\n{listed(problems)}")
    unknown = [
        f"{name}: unknown dtype {stored.dtype}"
        for name, stored in read_header(folder / ARRAYS).items()
        if stored.dtype not in _DTYPES
    ]
    if unknown:
        raise CheckpointError(f"{folder / ARRAYS}:\n{listed(unknown)}")
    return StoredState(folder, progress, load_file(folder / ARRAYS))


def digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's file. Raises CheckpointError if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
