"""The header of a GGUF file: settings, tokenizer and the list of its tensors.

The gguf package reads it too, but takes seconds: it keeps an array view for each of a vocabulary's
150,000 strings and numbers. This takes a tenth of a second.
"""

import math
import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, TypeVar

from tinygrad_peft.errors import CheckpointError, shortened, told
from tinygrad_peft.models.gguf.ggml_types import GGML_TYPES, GgmlType

__all__ = ["GgufHeader", "Scalar", "TensorInfo", "Value", "read_gguf_header"]

T = TypeVar("T")

Scalar: TypeAlias = int | float | bool | str
Value: TypeAlias = Scalar | list[Scalar]

_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_AXES = 4
_MOST_VALUES = 50_000_000  # in all settings: each takes up to 36 times its size in the file
_LONGEST_NAME = 1_000  # characters


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's name, shape and type, and its place in the file."""

    name: str
    shape: tuple[int, ...]  # slowest dimension first, as in NumPy
    ggml_type: int  # a key of GGML_TYPES, except in newer files
    offset: int  # bytes from the start of the file

    @property
    def dtype(self) -> str:
        """The name of its type: F32, Q4_K, ..."""
        known = GGML_TYPES.get(self.ggml_type)
        return known.name if known else f"type {self.ggml_type}"

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file; 0 for an unknown type."""
        known = GGML_TYPES.get(self.ggml_type, GgmlType("", 1, 0))
        return self.size // known.block * known.size


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The settings and the list of tensors of a GGUF file."""

    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a little-endian GGUF file, version 2 or 3.

    Raises CheckpointError for a file that is missing, of another format, cut short or
    inconsistent.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} cannot be read: expected a regular file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _read_header(_Cursor(data))
            problems = _impossible(header.tensors, len(data))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a usable GGUF file: {shortened(str(error))}"
        ) from error
    if problems:
        raise CheckpointError(f"{path} is truncated or damaged:{told(problems)}")
    return header


class _Cursor:
    """A reader of consecutive values; raises ValueError if the file ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.offset = 0
        self.values_left = _MOST_VALUES

    def bytes(self, size: int) -> bytes:
        start = self.offset
        if size > len(self.data) - start:
            raise ValueError(
                f"expected {size} bytes at offset {start}, got {len(self.data) - start}: "
                "the file is cut short or damaged"
            )
        self.offset = start + size
        return self.data[start : start + size]

    def name(self) -> str:
        text = self.text()
        if len(text) > _LONGEST_NAME or not text.isprintable():
            raise ValueError(
                f"expected a name of at most {_LONGEST_NAME} printable characters, got {text!r}"
            )
        return text

    def numbers(self, code: str, count: int) -> list[Scalar]:
        layout = f"<{count}{code}"
        return list(struct.unpack(layout, self.bytes(count * struct.calcsize(f"<{code}"))))

    def integer(self, code: str) -> int:
        return int(self.numbers(code, 1)[0])

    def text(self) -> str:
        return self.bytes(self.integer("Q")).decode("utf-8")

    def value(self) -> Value:
        kind = self.integer("I")
        if kind == _ARRAY:
            return self.array(self.integer("I"), self.integer("Q"))
        return self.array(kind, 1)[0]

    def array(self, kind: int, count: int) -> list[Scalar]:
        self.values_left -= count
        if self.values_left < 0:
            raise ValueError(f"more than {_MOST_VALUES:,} values at offset {self.offset}")
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"unknown value type {kind} at offset {self.offset}")
        return self.numbers(_NUMBERS[kind], count)


def _read_header(cursor: _Cursor) -> GgufHeader:
    magic = cursor.bytes(4)
    if magic != b"GGUF":
        raise ValueError(f"expected b'GGUF' at the beginning, got {magic!r}")
    version = cursor.integer("I")
    if version not in _VERSIONS:
        raise ValueError(f"expected version {' or '.join(map(str, _VERSIONS))}, got {version}")
    tensor_count, setting_count = cursor.integer("Q"), cursor.integer("Q")
    metadata = _unique((cursor.name(), cursor.value()) for _ in range(setting_count))
    infos = _unique((i.name, i) for i in (_tensor_info(cursor) for _ in range(tensor_count)))
    start = _aligned(cursor.offset, metadata.get("general.alignment", 32))
    moved = (replace(info, offset=start + info.offset) for info in infos.values())
    return GgufHeader(metadata, tuple(moved))


def _unique(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"duplicate name {name}")
        found[name] = value
    return found


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    name = cursor.name()
    axes = cursor.integer("I")
    if not 1 <= axes <= _MOST_AXES:
        raise ValueError(f"{name}: expected 1 to {_MOST_AXES} axes, got {axes}")
    shape = cursor.numbers("Q", axes)
    return TensorInfo(
        name=name,
        shape=tuple(int(size) for size in reversed(shape)),
        ggml_type=cursor.integer("I"),
        offset=cursor.integer("Q"),
    )


def _impossible(tensors: Sequence[TensorInfo], total: int) -> list[str]:
    """List tensors that overlap or lie outside the file's `total` bytes."""
    ordered = sorted(tensors, key=lambda info: info.offset)
    problems = [
        f"{b.name} and {a.name} overlap"
        for a, b in pairwise(ordered)
        if b.offset < a.offset + a.nbytes
    ]
    for info in tensors:
        block = GGML_TYPES[info.ggml_type].block if info.ggml_type in GGML_TYPES else 1
        if info.shape[-1] % block:
            problems.append(
                f"{info.name}: expected rows of a multiple of {block}, got {info.shape[-1]}"
            )
    lost = [info.name for info in ordered if info.offset + info.nbytes > total]
    if lost:
        others = f", and {len(lost) - 1} more lie behind" if len(lost) > 1 else ""
        problems.append(f"it ends within {lost[0]}{others}")
    return problems


def _aligned(offset: int, alignment: Value) -> int:
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment: expected a positive integer, got {alignment!r}")
    return -(-offset // alignment) * alignment
