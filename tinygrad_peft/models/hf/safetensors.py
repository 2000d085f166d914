"""Safetensors files: reading headers and single arrays, and writing.

The format: eight bytes with the header's length, the header as JSON, then the arrays' bytes, one
after another without gaps.
"""

import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
import numpy as np

from tinygrad_peft.arrays import AnyArray, Array, Shape
from tinygrad_peft.errors import CheckpointError, PrecisionWarning, nearest, shortened, told
from tinygrad_peft.files import decode_json_object

__all__ = ["FLOATS", "SaveDtype", "StoredTensor", "read_header", "write_tensors"]

SaveDtype = Literal["float32", "float16", "bfloat16"]

# NumPy dtypes to read each as; bfloat16, which NumPy lacks, is the upper half of a float32.
FLOATS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CODES: Mapping[SaveDtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Bits per element of each dtype in the format; only floats are read.
_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_LARGEST_HEADER = 100_000_000  # bytes, the limit of the format's own library
_LONGEST_NAME = 1_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """An array in a file: its name, dtype and shape, and the start of its bytes."""

    file: Path
    key: str
    dtype: str  # F32, BF16, I64, ... as in the header
    shape: Shape
    start: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.size * _BITS[self.dtype] // 8

    def read(self, dtype: np.dtype[np.floating], opened: BufferedReader | None = None) -> Array:
        """Read into a new array of `dtype`; `opened` is the file, where it is open already.

        Raises CheckpointError if the file has changed, or holds a number beyond the range of
        `dtype`.
        """
        raw = np.empty(self.shape, FLOATS[self.dtype])
        try:
            with self.file.open("rb") if opened is None else nullcontext(opened) as file:
                file.seek(self.start)
                count = file.readinto(raw.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise CheckpointError(f"{self.file} cannot be read: {error.strerror}") from error
        if count != raw.nbytes:
            raise CheckpointError(f"{self.file} ends within {self.key}")
        try:
            with np.errstate(over="raise"):
                return _widened(raw, self.dtype).astype(dtype, copy=False)
        except FloatingPointError:
            raise CheckpointError(
                f"{self.file}: {self.key}: expected numbers within {dtype}'s range, got one beyond"
            ) from None


_Size = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file: its tensors by name.

    Raises:
        CheckpointError: the file is missing or not safetensors, or has a broken header: lists
            invalid names and dtypes, and bytes that are too few, too many, shared by two arrays or
            outside the file.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if not path.is_file():  # a folder, a device, or a pipe that nobody writes to
        raise CheckpointError(f"{path} cannot be read: expected a regular file")
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


def file_size(tensors: Mapping[str, Array], dtype: SaveDtype) -> int:
    """Return the bytes that the arrays take in a file, without its header."""
    return sum(array.size for array in tensors.values()) * (4 if dtype == "float32" else 2)


def write_tensors(path: Path, tensors: Mapping[str, Array], dtype: SaveDtype) -> None:
    """Write a safetensors file, one array at a time.

    Warns with PrecisionWarning about numbers that are too small for the dtype and become zero.
    Raises CheckpointError for a number too large for it.
    """
    lost: dict[str, int] = {}
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
            narrow = _narrowed(key, array, dtype)
            if dtype != "float32" and (zeros := _became_zero(array, narrow)):
                lost[key] = zeros
            file.write(narrow.reshape(-1).view(np.uint8).data)
    if lost:
        _warn_of_underflow(path, lost, sum(array.size for array in tensors.values()), dtype)


def _damaged(path: Path, total: int, problems: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or not a safetensors file ({total} bytes):{told(problems)}"
    )


def _header_text(head: bytes, total: int, file: BinaryIO) -> bytes:
    """Read the header's JSON, with its length in `head`. Raises ValueError for a broken one."""
    if len(head) < 8:
        raise ValueError("expected eight bytes with the header's length")
    (size,) = struct.unpack("<Q", head)
    most = min(total - 8, _LARGEST_HEADER)
    if size > most:
        raise ValueError(f"header: expected at most {most} bytes, got a length of {size}")
    text = file.read(size)
    if not text.startswith(b"{"):
        raise ValueError(f"header: expected a JSON object, got {text[:8]!r}")
    return text


def _entries(raw: Mapping[str, object]) -> tuple[dict[str, _Entry], list[str]]:
    """Decode the entries of a header, and list what is wrong with each alone."""
    entries, problems = {}, []
    for key, value in raw.items():
        try:
            entries[key] = msgspec.convert(value, _Entry)
            problems += [
                f"{shortened(repr(key), 100)}: {p}" for p in _impossible(key, entries[key])
            ]
        except msgspec.ValidationError as error:
            problems.append(f"{shortened(repr(key), 100)}: {error}")
    return entries, problems


def _impossible(key: str, entry: _Entry) -> Iterator[str]:
    begin, end = entry.data_offsets
    if len(key) > _LONGEST_NAME or not key.isprintable():
        yield f"expected a name of at most {_LONGEST_NAME} printable characters"
    if entry.dtype not in _BITS:
        yield f"unknown dtype {entry.dtype!r}{nearest(entry.dtype, _BITS, 1)}"
    elif 8 * (end - begin) != _BITS[entry.dtype] * math.prod(entry.shape):
        shape = shortened(str(entry.shape), 100)
        yield f"expected the bytes for {entry.dtype} {shape}, got {end - begin}"


def _misplaced(entries: Mapping[str, _Entry], total: int) -> list[str]:
    """List gaps and overlaps between the arrays' bytes, from the first to the last of `total`."""
    problems, last, reached = [], "the header", 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin < reached:
            problems.append(f"{key} and {last} overlap by {reached - begin} bytes")
        elif begin > reached:
            problems.append(f"{begin - reached} unused bytes between {last} and {key}")
        last, reached = key, end
    if reached > total:
        problems.append(f"{last} ends {reached - total} bytes after the end of the file")
    elif reached < total:
        problems.append(f"{total - reached} unused bytes after {last}")
    return problems


def _widened(raw: AnyArray, dtype: str) -> Array:
    return (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw


def _narrowed(key: str, array: Array, dtype: SaveDtype) -> AnyArray:
    """Convert an array to `dtype`, rounded to the nearest, in row-major order."""
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, "<f4")
        narrow = _upper_half(single) if dtype == "bfloat16" else single.astype(dtype, copy=False)
    wide = _widened(narrow, _CODES[dtype])
    if not np.isfinite(wide).all() and np.isinf(wide[np.isfinite(array)]).any():
        raise CheckpointError(f"{key} has numbers too large for {dtype}")
    return narrow


def _became_zero(array: Array, narrow: AnyArray) -> int:
    """Count the numbers that were not zero and are zero now, of either sign."""
    bits = narrow.view("<u2")
    return int(np.count_nonzero(((bits & 0x7FFF) == 0) & (array != 0)))


def _warn_of_underflow(path: Path, lost: Mapping[str, int], size: int, dtype: SaveDtype) -> None:
    worst = ", ".join(f"{k}: {lost[k]:,}" for k in sorted(lost, key=lambda key: -lost[key])[:3])
    warnings.warn(
        f"{path.name}: {sum(lost.values()):,} of {size:,} numbers are too small for {dtype} and "
        f"became 0, in {len(lost)} tensors (most in {worst})",
        PrecisionWarning,
        stacklevel=2,
    )


def _upper_half(x: Array) -> AnyArray:
    """Take the upper 16 bits of float32, rounded to the nearest, halves to even."""
    bits = x.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype("<u2")
