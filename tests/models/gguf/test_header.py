"""Headers of GGUF files, against the files that the gguf package writes."""

import struct
from pathlib import Path

import numpy as np
import pytest

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models.gguf.header import read_gguf_header


@pytest.fixture
def small(tmp_path: Path) -> Path:
    gguf = pytest.importorskip("gguf", reason="needs the gguf extra")
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32("llama.rope.freq_base", 0.5)
    writer.add_int64("negative", -3)
    writer.add_bool("flag", True)
    writer.add_string("name", "né 😀")
    writer.add_array("words", ["a", "", "ccc"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("wide", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("flat", np.full(5, 7, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_type_of_setting_is_read(small: Path) -> None:
    assert read_gguf_header(small).metadata == {
        "general.architecture": "llama",
        "llama.rope.freq_base": 0.5,
        "negative": -3,
        "flag": True,
        "name": "né 😀",
        "words": ["a", "", "ccc"],
        "numbers": [1, -2, 3],
    }


def test_tensors_lie_where_the_header_says(small: Path) -> None:
    wide, flat = read_gguf_header(small).tensors
    assert (wide.name, wide.shape, wide.ggml_type) == ("wide", (2, 3), 0)
    assert (flat.name, flat.shape, flat.ggml_type) == ("flat", (5,), 1)
    raw = small.read_bytes()
    assert np.frombuffer(raw, np.float32, 6, wide.offset).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.frombuffer(raw, np.float16, 5, flat.offset).tolist() == [7] * 5


def test_every_way_to_cut_the_header_short_is_an_error(small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    end = read_gguf_header(small).tensors[0].offset - 32
    for size in range(1, end):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="not a usable GGUF file"):
            read_gguf_header(cut)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot mmap an empty file"),
        (b"PK\x03\x04" + bytes(60), r"expected b'GGUF' at the beginning, got b'PK\\x03\\x04'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "expected version 2 or 3, got 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "expected 8 bytes at offset 24, got 0"),
        (
            b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 77),
            "unknown value type 77 at offset 37",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1),
            "unknown value type 9 at offset",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 0, 2**60),
            "more than 50,000,000 values at offset",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1s", 3, 0, 1, 1, b"\n"),
            r"expected a name of at most 1000 printable characters, got '\\n'",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIBQ1sIB", 3, 0, 2, 1, b"a", 0, 1, 1, b"a", 0, 2),
            "duplicate name a",
        ),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 0), "a: expected 1 to 4 axes, got 0"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 5), "a: expected 1 to 4 axes, got 5"),
        (
            b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 0),
            "general.alignment: expected a positive integer, got 0",
        ),
    ],
)
def test_damaged_headers_are_reported(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        read_gguf_header(path)


def table(*tensors: tuple[str, int, int, int]) -> bytes:
    """Write tensors of one axis, by name, size, type and offset, and 64 bytes of data."""
    infos = b"".join(
        struct.pack("<Q1sIQIQ", 1, name.encode(), 1, size, kind, offset)
        for name, size, kind, offset in tensors
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + infos
    return head + bytes(-len(head) % 32) + bytes(64)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (table(("a", 8, 0, 0), ("b", 8, 0, 16)), "b and a overlap"),
        (table(("a", 17, 0, 0)), "it ends within a$"),
        (table(("a", 8, 0, 0), ("b", 9, 0, 32), ("c", 8, 0, 2**63)), "within b, and 1 more lie"),
        (table(("a", 1, 0, 0), ("a", 1, 0, 32)), "duplicate name a"),
        (table(("a", 33, 2, 0)), "a: expected rows of a multiple of 32, got 33"),
    ],
)
def test_invalid_places_of_tensors_are_reported(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"bad\.gguf is .*{told}"):
        read_gguf_header(path)


def test_a_tensor_of_unknown_type_has_no_size(tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    path.write_bytes(table(("a", 8, 999, 0)))
    (info,) = read_gguf_header(path).tensors
    assert (info.dtype, info.size, info.nbytes) == ("type 999", 8, 0)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a regular file"):
        read_gguf_header(tmp_path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.gguf cannot be read: No such file"):
        read_gguf_header(tmp_path / "absent.gguf")
