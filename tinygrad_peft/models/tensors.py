"""Safetensors files: what is in one, reading one array at a time, and writing.

(The format: eight bytes with the header's length, the header as JSON, then the arrays' bytes.)
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from tinygrad_peft.arrays import AnyArray, Array, Shape
from tinygrad_peft.errors import CheckpointError

__all__ = ["FLOATS", "SaveDtype", "StoredTensor", "read_header", "write_tensors"]

SaveDtype = Literal["float32", "float16", "bfloat16"]

# How the bytes of each are read; bfloat16 is the upper half of a float32, which NumPy lacks.
FLOATS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CODES: Mapping[SaveDtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """An array in a file: its name, kind and shape, and where its bytes begin."""

    file: Path
    key: str
    dtype: str  # F32, BF16, I64, ... as the header has it
    shape: Shape
    start: int

    def read(self, dtype: np.dtype[np.floating]) -> Array:
        """The array, a new one in that dtype. Raises CheckpointError where the file has changed."""
        raw = np.empty(self.shape, FLOATS[self.dtype])
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                count = file.readinto(raw.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise CheckpointError(f"{self.file} cannot be read: {error.strerror}") from error
        if count != raw.nbytes:
            raise CheckpointError(f"{self.file} ends within {self.key}")
        return _widened(raw, self.dtype).astype(dtype, copy=False)


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, by name.

    Raises:
        CheckpointError: the file is missing, truncated, or no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with safe_open(path, framework="numpy"):  # checks lengths, offsets and overlaps
            pass
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = msgspec.json.decode(file.read(size), type=dict[str, msgspec.Raw])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({path.stat().st_size} bytes): {error}"
        ) from error
    header.pop("__metadata__", None)
    entries = {key: msgspec.json.decode(raw, type=_Entry) for key, raw in header.items()}
    return {
        key: StoredTensor(path, key, entry.dtype, entry.shape, 8 + size + entry.data_offsets[0])
        for key, entry in entries.items()
    }


def write_tensors(path: Path, tensors: Mapping[str, Array], dtype: SaveDtype) -> None:
    """Write a safetensors file, one array at a time.

    Raises CheckpointError for a number that is too large for the dtype.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, width = 0, 4 if dtype == "float32" else 2
    for key, array in tensors.items():
        end = offset + array.size * width
        header[key] = _Entry(_CODES[dtype], array.shape, (offset, end))
        offset = end
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, array in tensors.items():
            file.write(_narrowed(key, array, dtype).reshape(-1).view(np.uint8).data)


def _widened(raw: AnyArray, dtype: str) -> Array:
    return (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw


def _narrowed(key: str, array: Array, dtype: SaveDtype) -> AnyArray:
    """The array's bytes in that dtype, rounded to the nearest, in row-major order."""
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, "<f4")
        narrow = _upper_half(single) if dtype == "bfloat16" else single.astype(dtype, copy=False)
    wide = _widened(narrow, _CODES[dtype])
    if not np.isfinite(wide).all() and np.isinf(wide[np.isfinite(array)]).any():
        raise CheckpointError(f"{key} has numbers that are too large for {dtype}")
    return narrow


def _upper_half(x: Array) -> AnyArray:
    """The upper 16 bits of float32, rounded to the nearest, halves to even."""
    bits = x.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype("<u2")
