"""Safetensors files: what is in one, reading one array at a time, and writing.

(The format: eight bytes with the header's length, the header as JSON, then the arrays' bytes, one
behind the other and nothing between them.)
"""

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
import numpy as np

from tinygrad_peft.arrays import AnyArray, Array, Shape
from tinygrad_peft.errors import CheckpointError, nearest, shortened, told
from tinygrad_peft.models.safe_files import decode_json_object

__all__ = ["FLOATS", "SaveDtype", "StoredTensor", "read_header", "write_tensors"]

SaveDtype = Literal["float32", "float16", "bfloat16"]

# How the bytes of each are read; bfloat16 is the upper half of a float32, which NumPy lacks.
FLOATS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CODES: Mapping[SaveDtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# How many bits an element has of each dtype of the format, of which only floats are read.
_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_LARGEST_HEADER = 100_000_000  # bytes, as the format's own library has it
_LONGEST_NAME = 1_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """An array in a file: its name, kind and shape, and where its bytes begin."""

    file: Path
    key: str
    dtype: str  # F32, BF16, I64, ... as the header has it
    shape: Shape
    start: int

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes in the file."""
        return self.size * _BITS[self.dtype] // 8

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


_Size = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, by name.

    Raises:
        CheckpointError: the file is missing or no safetensors file, or all that is wrong with its
            header: names and dtypes that cannot be, bytes that are too few, too many, shared by
            two arrays or outside the file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    total = 0
    try:
        with path.open("rb") as file:
            total = file.seek(0, os.SEEK_END)
            file.seek(0)
            text = _header_text(file.read(8), total, file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _damaged(path, total, [str(error)]) from None
    raw = decode_json_object(text, f"{path}: the header")
    raw.pop("__metadata__", None)
    start = 8 + len(text)
    entries, problems = _entries(raw)
    problems = problems or _misplaced(entries, total - start)
    if problems:
        raise _damaged(path, total, problems)
    return {
        key: StoredTensor(path, key, entry.dtype, entry.shape, start + entry.data_offsets[0])
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


def _damaged(path: Path, total: int, problems: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or no safetensors file ({total} bytes):{told(problems)}"
    )


def _header_text(head: bytes, total: int, file: BinaryIO) -> bytes:
    """The header's JSON, which `head` gives the length of. Raises ValueError where it cannot be."""
    if len(head) < 8:
        raise ValueError("expected eight bytes with the header's length")
    (size,) = struct.unpack("<Q", head)
    if size > min(total - 8, _LARGEST_HEADER):
        raise ValueError(f"it begins with a header's length of {size} bytes")
    text = file.read(size)
    if not text.startswith(b"{"):
        raise ValueError(f"the header begins with {text[:8]!r}, expected an object")
    return text


def _entries(raw: Mapping[str, object]) -> tuple[dict[str, _Entry], list[str]]:
    """The arrays that a header tells of, and what is wrong with each of them alone."""
    entries, problems = {}, []
    for key, value in raw.items():
        try:
            entries[key] = msgspec.convert(value, _Entry)
            problems += [f"{shortened(repr(key), 100)} {p}" for p in _impossible(key, entries[key])]
        except msgspec.ValidationError as error:
            problems.append(f"{shortened(repr(key), 100)}: {error}")
    return entries, problems


def _impossible(key: str, entry: _Entry) -> Iterator[str]:
    begin, end = entry.data_offsets
    if len(key) > _LONGEST_NAME or not key.isprintable():
        yield f"is no name: expected at most {_LONGEST_NAME} printable characters"
    if entry.dtype not in _BITS:
        yield f"has the dtype {entry.dtype!r}{nearest(entry.dtype, _BITS, 1)}"
    elif 8 * (end - begin) != _BITS[entry.dtype] * math.prod(entry.shape):
        shape = shortened(str(entry.shape), 100)
        yield f"has {end - begin} bytes, which are not those of {entry.dtype} {shape}"


def _misplaced(entries: Mapping[str, _Entry], total: int) -> list[str]:
    """Arrays whose bytes do not follow one another, from the first byte to the last of `total`."""
    problems, last, reached = [], "the header", 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin < reached:
            problems.append(f"{key} and {last} overlap by {reached - begin} bytes")
        elif begin > reached:
            problems.append(f"between {last} and {key} are {begin - reached} bytes of no array")
        last, reached = key, end
    if reached > total:
        problems.append(f"{last} ends {reached - total} bytes behind the end of the file")
    elif reached < total:
        problems.append(f"behind {last} are {total - reached} bytes of no array")
    return problems


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
