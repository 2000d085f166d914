"""The header of a GGUF file: settings, tokenizer and the list of its tensors.

The gguf package reads it too, but keeps an array view for each of the 150,000 strings and numbers
of a vocabulary, which takes seconds; this takes a tenth of one.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tinygrad_peft.errors import CheckpointError

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


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in the file, and how."""

    name: str
    shape: tuple[int, ...]  # slowest dimension first, as in NumPy
    ggml_type: int  # a gguf.GGMLQuantizationType
    offset: int  # bytes from the start of the file


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that a GGUF file says before its tensor data."""

    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a little-endian GGUF file, version 2 or 3.

    Raises CheckpointError for a file that is missing, of another format, or cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_header(_Cursor(data))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a usable GGUF file: {error}") from error


class _Cursor:
    """Reads values one after the other; a ValueError where the file ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.offset = 0

    def bytes(self, size: int) -> bytes:
        start = self.offset
        if size > len(self.data) - start:
            raise ValueError(
                f"expected {size} bytes at offset {start}, got {len(self.data) - start}: "
                "the file is cut short or damaged"
            )
        self.offset = start + size
        return self.data[start : start + size]

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
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"unknown value type {kind} at offset {self.offset}")
        return self.numbers(_NUMBERS[kind], count)


def _read_header(cursor: _Cursor) -> GgufHeader:
    magic = cursor.bytes(4)
    if magic != b"GGUF":
        raise ValueError(f"expected it to begin with b'GGUF', got {magic!r}")
    version = cursor.integer("I")
    if version not in _VERSIONS:
        raise ValueError(f"expected version {' or '.join(map(str, _VERSIONS))}, got {version}")
    tensor_count, setting_count = cursor.integer("Q"), cursor.integer("Q")
    metadata = {cursor.text(): cursor.value() for _ in range(setting_count)}
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    start = _aligned(cursor.offset, metadata.get("general.alignment", 32))
    return GgufHeader(metadata, tuple(_moved(info, start) for info in infos))


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    name = cursor.text()
    shape = cursor.numbers("Q", cursor.integer("I"))
    return TensorInfo(
        name=name,
        shape=tuple(int(size) for size in reversed(shape)),
        ggml_type=cursor.integer("I"),
        offset=cursor.integer("Q"),
    )


def _moved(info: TensorInfo, start: int) -> TensorInfo:
    return TensorInfo(info.name, info.shape, info.ggml_type, start + info.offset)


def _aligned(offset: int, alignment: Value) -> int:
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment: expected a positive integer, got {alignment!r}")
    return -(-offset // alignment) * alignment
