"""Writing files whole or not at all, and removing them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save as safetensors_bytes

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import replacing

__all__ = ["make_folder", "remove_files", "remove_if_empty", "write_json", "write_tensors"]


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Raises CheckpointError if that fails."""
    with _errors_named(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)


def write_tensors(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a safetensors file. Raises CheckpointError if that fails."""
    tensors = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
    with _errors_named(path, "written"), replacing(path) as file:
        file.write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object. Raises CheckpointError if that fails."""
    with _errors_named(path, "written"), replacing(path) as file:
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def remove_files(paths: Iterable[Path]) -> None:
    """Remove the files that exist. Raises CheckpointError if that fails."""
    for path in paths:
        with _errors_named(path, "removed"):
            path.unlink(missing_ok=True)


def remove_if_empty(folder: Path) -> None:
    """Remove an empty folder. Raises CheckpointError if that fails."""
    with _errors_named(folder, "removed"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _errors_named(path: Path, done: str) -> Iterator[None]:
    """Raise the system's errors as CheckpointError, with the path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be {done}: {error.strerror or error}") from error
