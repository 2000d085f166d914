import re
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models.hf.safetensors import SaveDtype, StoredTensor, read_header, write_tensors

FLOAT32 = np.dtype(np.float32)


def bfloat16_by_hand(value: float) -> float:
    """Round to the nearest number with 16 zero bits at the end, halves to even."""
    below = int(np.float32(abs(value)).view(np.uint32)) >> 16
    around = [np.uint32(bits << 16).view(np.float32) for bits in (below, below + 1)]
    apart = [abs(float(x) - abs(float(np.float32(value)))) for x in around]
    first = apart[0] < apart[1] or (apart[0] == apart[1] and below % 2 == 0)
    return float(np.copysign(around[0 if first else 1], value))


def test_the_safetensors_package_reads_written_files(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    file = tmp_path / "x.safetensors"
    tensors: dict[str, Array] = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "transposed": rng.standard_normal((3, 5)).astype(np.float32).T,
        "empty": np.zeros((0, 4), np.float32),
        "ünï": np.ones(1, np.float32),
    }
    write_tensors(file, tensors, "float32")
    found = load_file(file)
    assert set(found) == set(tensors)
    assert all(np.array_equal(found[key], array) for key, array in tensors.items())
    with safe_open(file, framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_files_of_the_safetensors_package_are_read(
    tmp_path: Path, rng: np.random.Generator, kind: type[np.floating]
) -> None:
    file = tmp_path / "x.safetensors"
    array = rng.standard_normal((4, 3)).astype(kind)
    save_file({"a": array, "n": np.arange(3)}, file, metadata={"some": "thing"})
    header = read_header(file)
    assert (header["a"].shape, header["n"].dtype) == ((4, 3), "I64")
    np.testing.assert_array_equal(header["a"].read(FLOAT32), array.astype(np.float32))
    assert header["a"].read(np.dtype(np.float64)).dtype == np.float64


def test_bfloat16_rounds_to_the_nearest_and_halves_to_even(tmp_path: Path) -> None:
    step = 2.0**-7
    values = [0.0, -0.0, 1.0, 1 + step / 2, 1 + 3 * step / 2, 1 + step * 0.51, -3.1415927, 1e-40]
    values += [65504.0, 3e38, float("inf"), float("-inf")]
    array = np.array(values, np.float32)
    write_tensors(tmp_path / "x", {"a": array}, "bfloat16")
    found = read_header(tmp_path / "x")["a"]
    assert found.dtype == "BF16"
    expected = [v if np.isinf(v) else bfloat16_by_hand(v) for v in values]
    np.testing.assert_array_equal(found.read(FLOAT32), np.array(expected, np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nan_stays_nan(tmp_path: Path, dtype: SaveDtype) -> None:
    bits = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32)
    write_tensors(tmp_path / "x", {"a": bits.view(np.float32)}, dtype)
    assert np.isnan(read_header(tmp_path / "x")["a"].read(FLOAT32)).all()


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 1e5), ("bfloat16", 3.4e38), ("float32", 1e39)]
)
def test_numbers_too_large_for_the_dtype_are_refused(
    tmp_path: Path, dtype: SaveDtype, value: float
) -> None:
    with pytest.raises(CheckpointError, match=f"^a has numbers too large for {dtype}$"):
        write_tensors(tmp_path / "x", {"a": np.array([1.0, -value])}, dtype)


def test_numbers_in_a_file_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": np.array([1.0, 1e300])}, file)
    stored = read_header(file)["a"]
    assert stored.read(np.dtype(np.float64))[1] == 1e300
    with pytest.raises(CheckpointError, match=r"a: expected numbers within float32's range"):
        stored.read(FLOAT32)


def test_a_header_that_points_outside_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    text = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match="is truncated or not a safetensors file"):
        read_header(file)


def test_a_header_whose_shape_and_bytes_differ_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    text = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}'
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match="is truncated or not a safetensors file"):
        read_header(file)


def written(file: Path, header: str | bytes, data: int, size: int | None = None) -> Path:
    """Write a file with a header, of its own length unless `size` is given."""
    text = header if isinstance(header, bytes) else header.encode()
    file.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + bytes(data))
    return file


def entry(name: str, start: int, end: int, shape: str = "[2]", dtype: str = "F32") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


@pytest.mark.parametrize(
    ("entries", "data", "told"),
    [
        ([entry("a", 0, 8), entry("b", 4, 12)], 12, "b and a overlap by 4 bytes"),
        ([entry("a", 0, 8), entry("b", 0, 8)], 8, "b and a overlap by 8 bytes"),
        ([entry("a", 0, 8), entry("b", 12, 20)], 20, "4 unused bytes between a and b"),
        ([entry("a", 4, 12)], 12, "4 unused bytes between the header and a"),
        ([entry("a", 0, 8)], 7, "a ends 1 bytes after the end of the file"),
        ([entry("a", 0, 8)], 9, "1 unused bytes after a"),
        ([entry("a", 0, 6)], 6, "'a': expected the bytes for F32 (2,), got 6"),
        ([entry("a", 8, 0)], 8, "'a': expected the bytes for F32 (2,), got -8"),
        ([entry("a", 0, 8, dtype="F33")], 8, "'a': unknown dtype 'F33'; did you mean 'F32'?"),
        ([entry("a", 0, 8, shape="[-2]")], 8, "'a': Expected `int` >= 0"),
        ([entry("a", 0, 8, shape="[2.0]")], 8, "'a': Expected `int`, got `float`"),
        ([entry("a", 0, 8, shape="[1e400]")], 8, "Number out of range"),
        (
            [entry("a", 0, 8, shape=f"[{2**62},{2**62}]")],
            8,
            "expected the bytes for F32 (4611686018427387904, ",
        ),
        ([entry("a", 0, 8), entry("a", 8, 16)], 16, "the header has duplicate keys"),
        ([entry("a\\nb", 0, 8)], 8, r"'a\nb': expected a name of at most 1000 printable"),
        ([entry("a" * 1001, 0, 8)], 8, "expected a name of at most 1000 printable"),
        (['"a":{"dtype":"F32"}'], 0, "'a': Object missing required field `shape`"),
        (['"a":[]'], 0, "'a': Expected `object`, got `array`"),
    ],
)
def test_a_broken_header_is_refused_in_a_line(
    tmp_path: Path, entries: list[str], data: int, told: str
) -> None:
    file = written(tmp_path / "x", "{" + ",".join(entries) + "}", data)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert str(caught.value).startswith(str(file))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_of_a_header_are_in_one_error(tmp_path: Path) -> None:
    broken = [entry("a", 0, 6), entry("b", 0, 8, dtype="F"), entry("c", 0, 8, shape="[-1]")]
    with pytest.raises(CheckpointError) as caught:
        read_header(written(tmp_path / "x", "{" + ",".join(broken) + "}", 8))
    lines = str(caught.value).splitlines()
    assert [line[:7] for line in lines[1:]] == ["  - 'a'", "  - 'b'", "  - 'c'"]


@pytest.mark.parametrize(
    ("header", "size", "told"),
    [
        (
            b"{}",
            2**64 - 1,
            "header: expected at most 2 bytes, got a length of 18446744073709551615",
        ),
        (b"{}", 3, "header: expected at most 2 bytes, got a length of 3"),
        (b" {}", 3, "header: expected a JSON object, got b' {}'"),
        (b"{} ", 0, "header: expected a JSON object, got b''"),
        (b"{", 1, "the header is not JSON"),
        (b'{"a":' * 20_000, 100_000, "the header is not JSON: maximum recursion depth exceeded"),
    ],
)
def test_other_content_in_place_of_a_header_is_refused(
    tmp_path: Path, header: bytes, size: int, told: str
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(told)):
        read_header(written(tmp_path / "x", header, 0, size))


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # a hole, which takes no space
    with pytest.raises(
        CheckpointError, match="expected at most 100000000 bytes, got a length of 100000001"
    ):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E4M3", "BOOL", "I16", "U32", "C64", "BF16"])
def test_sizes_of_dtypes_match_the_safetensors_package(tmp_path: Path, dtype: str) -> None:
    bits = [size for size in (4, 6, 8, 16, 32, 64) if _takes(tmp_path / "x", dtype, size)]
    assert len(bits) == 1
    found = read_header(written(tmp_path / "x", "{" + _of(dtype, bits[0]) + "}", bits[0]))
    assert (found["a"].size, found["a"].nbytes) == (8, bits[0])


def _of(dtype: str, bits: int) -> str:
    return entry("a", 0, bits, shape="[8]", dtype=dtype)


def _takes(file: Path, dtype: str, bits: int) -> bool:
    """Tell whether the package reads eight elements of `bits` bits."""
    try:
        with safe_open(written(file, "{" + _of(dtype, bits) + "}", bits), framework="numpy"):
            return True
    except SafetensorError:
        return False


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_header(tmp_path / "x")


def test_a_file_that_shrank_after_opening_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x"
    write_tensors(file, {"a": np.ones(4)}, "float32")
    stored = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"ends within a$"):
        stored.read(FLOAT32)


def test_a_file_that_vanished_after_opening_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        StoredTensor(tmp_path / "gone", "a", "F32", (1,), 8).read(FLOAT32)
