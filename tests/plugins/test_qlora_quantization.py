import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from tinygrad_peft import reference
from tinygrad_peft.arrays import AnyArray, Array
from tinygrad_peft.errors import ConfigError, PeftError, ShapeError
from tinygrad_peft_qlora import QuantizedWeight, dequantize, quantize
from tinygrad_peft_qlora.double import DYNAMIC_MAP, DoubleQuantized, double_quantize
from tinygrad_peft_qlora.quantization import (
    BLOCK_SIZES,
    NF4,
    QuantType,
    fits_in_float32,
    row_blocks,
    unpack,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "nf4" / "bitsandbytes.safetensors"


def golden() -> tuple[dict[str, AnyArray], list[int]]:
    with safe_open(GOLDEN, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return arrays, json.loads(file.metadata()["block_sizes"])


ARRAYS, SIZES = golden()


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def codes_of(packed: QuantizedWeight) -> AnyArray:
    """Unpack the codes (size,)."""
    both = np.stack([packed.codes >> 4, packed.codes & 15], axis=1)
    return both.reshape(-1)[: packed.size]


# ---------- bitsandbytes ----------


@pytest.mark.parametrize("case", range(len(SIZES)))
def test_nf4_bytes_match_bitsandbytes(case: int) -> None:
    packed = quantize(ARRAYS[f"{case}.weight"], block_size=SIZES[case])
    np.testing.assert_array_equal(packed.codes, ARRAYS[f"{case}.codes"])
    np.testing.assert_array_equal(packed.scales, ARRAYS[f"{case}.absmax"])


def test_the_8_bit_map_and_codes_match_bitsandbytes() -> None:
    np.testing.assert_array_equal(DYNAMIC_MAP, ARRAYS["scales.map"])
    packed = double_quantize(ARRAYS["scales"])
    np.testing.assert_array_equal(packed.codes, ARRAYS["scales.codes"])
    np.testing.assert_array_equal(packed.absmax, ARRAYS["scales.absmax"])


# ---------- the formulas ----------


@pytest.mark.parametrize("shape", [(8, 64), (9, 33), (1, 5)])
def test_nf4_matches_the_reference(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    codes, absmax = reference.quantize_nf4(weight)
    packed = quantize(weight)
    np.testing.assert_array_equal(codes_of(packed), codes)
    np.testing.assert_array_equal(packed.scales, absmax)
    expected = reference.dequantize_nf4(codes, absmax, shape)
    np.testing.assert_array_equal(dequantize(packed), expected)


def test_int4_of_one_block_matches_the_reference() -> None:
    weight = drawn(8, 8)
    codes, scale, zero_point = reference.quantize_to_4bit(weight)
    packed = quantize(weight, quant_type="int4")
    np.testing.assert_array_equal(codes_of(packed).reshape(8, 8), codes)
    assert isinstance(packed.scales, np.ndarray)
    assert packed.scales.item() == pytest.approx(scale, rel=1e-6)
    np.testing.assert_array_equal(packed.zero_points, [zero_point])


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_nf4_is_the_nearest_of_16_values_times_the_largest_of_a_block(block_size: int) -> None:
    weight = drawn(5, 1234)
    packed = quantize(weight, block_size=block_size)
    for start in range(0, weight.size, block_size):
        block = weight.reshape(-1)[start : start + block_size].astype(np.float64)
        distance = np.abs(block[:, None] / np.abs(block).max() - NF4)  # (size, 16)
        chosen = codes_of(packed)[start : start + block_size]
        nearest = distance.min(axis=1)
        np.testing.assert_allclose(distance[np.arange(len(block)), chosen], nearest, atol=1e-6)


def test_unpacked_nf4_is_value_times_scale_bit_for_bit() -> None:
    packed = quantize(drawn(7, 33))
    assert isinstance(packed.scales, np.ndarray)
    scales = packed.scales.repeat(64)[: packed.size]
    np.testing.assert_array_equal(dequantize(packed).reshape(-1), NF4[codes_of(packed)] * scales)


def test_int4_is_the_nearest_step_from_a_zero_that_is_exact() -> None:
    weight = drawn(6, 64)
    weight[:, ::3] = 0
    packed = quantize(weight, quant_type="int4")
    assert isinstance(packed.scales, np.ndarray)
    assert packed.zero_points is not None
    unpacked = dequantize(packed)
    steps = np.abs(unpacked - weight) / packed.scales[:, None]
    assert steps.max() <= 0.5 + 1e-5
    assert not unpacked[weight == 0].any()
    expected = packed.scales[:, None] * (
        codes_of(packed).reshape(6, 64).astype(np.float32) - packed.zero_points[:, None]
    )
    np.testing.assert_array_equal(unpacked, expected)


@pytest.mark.parametrize("quant_type", ["nf4", "int4"])
@pytest.mark.parametrize("value", [0.0, 0.3, -0.7, 1e-30, -3e38, 1e-45])
@pytest.mark.parametrize("columns", [64, 65])
def test_a_block_of_one_value_is_exact(quant_type: QuantType, value: float, columns: int) -> None:
    weight = np.full((3, columns), value, np.float32)
    np.testing.assert_array_equal(dequantize(quantize(weight, quant_type=quant_type)), weight)


SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
LARGEST = float(np.finfo(np.float32).max)
MAGNITUDES = [0, SMALLEST, 20 * SMALLEST, 2.76e-43, 2e-39, 9.9e-39, 1.1e-38, 2e-38, 1e30, LARGEST]
SHAPES: dict[str, Callable[[Array], Array]] = {
    "on both sides": lambda x: x,
    "positive": np.abs,
    "negative": lambda x: -np.abs(x),
    "far from zero": lambda x: 0.9 + 0.1 * x,
}


def of_size(size: float, shape: str, count: int, dtype: type[np.floating]) -> Array:
    """Draw weights up to about `size`, in blocks of 64 and a short one."""
    drawn_from = np.random.default_rng(count).uniform(-1, 1, (1, count))
    drawn_from[0, :2] = -1, 1
    weight = size * SHAPES[shape](drawn_from)
    return np.asarray(weight.astype(np.float32).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [64, 100, 257])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", MAGNITUDES)
def test_nf4_of_blocks_of_any_size_takes_the_nearest_level(
    size: float, shape: str, count: int, dtype: type[np.floating]
) -> None:
    weight = of_size(size, shape, count, dtype)
    packed = quantize(weight)
    for start in range(0, count, 64):
        block = weight[0, start : start + 64].astype(np.float64)
        levels = NF4.astype(np.float64) * np.abs(block).max()
        nearest = np.abs(block[:, None] - levels).min(axis=1)
        error = np.abs(dequantize(packed)[0, start : start + 64] - block)
        # Levels are rounded to multiples of the smallest number.
        np.testing.assert_allclose(error, nearest, rtol=0, atol=1e-6 * size + SMALLEST)
    codes, absmax = reference.quantize_nf4(weight)
    np.testing.assert_array_equal(codes, codes_of(packed))
    assert np.isfinite(reference.dequantize_nf4(codes, absmax, weight.shape)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [64, 100, 257])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", MAGNITUDES)
def test_int4_of_blocks_of_any_size_is_off_by_half_a_step_at_most(
    size: float, shape: str, count: int, dtype: type[np.floating]
) -> None:
    weight = of_size(size, shape, count, dtype)
    packed = quantize(weight, quant_type="int4")
    assert isinstance(packed.scales, np.ndarray)
    unpacked = dequantize(packed)
    assert np.isfinite(unpacked).all()
    for start in range(0, count, 64):
        at = slice(start, start + 64)
        block = weight[0, at].astype(np.float64)
        step = (max(block.max(), 0) - min(block.min(), 0)) / 15
        if 8 * step > LARGEST:  # leaving the steps from -7 to 7
            step = np.abs(block).max() / 7.5
        if step < np.finfo(np.float32).tiny:  # a multiple of the smallest number
            step = SMALLEST * np.ceil(step / SMALLEST)
        assert np.abs(unpacked[0, at] - block).max() <= step * (0.5 + 1e-5)


@pytest.mark.parametrize("largest", [0, SMALLEST, 2e-39, 1, LARGEST])
@pytest.mark.parametrize("least", [0, SMALLEST, 2e-39, 1, LARGEST])
@pytest.mark.parametrize("count", [1, 256, 300])
def test_scales_of_any_size_are_kept_at_8_bits(largest: float, least: float, count: int) -> None:
    scales = np.random.default_rng(0).uniform(0, 1, count) * (largest - least) + least
    scales[:1], scales[-1:] = least, largest
    packed = double_quantize(scales.astype(np.float32))
    restored = packed.restore(0, count)
    assert np.isfinite(restored).all()
    step = float(np.diff(DYNAMIC_MAP).max()) * float(packed.absmax.max())
    error = np.abs(restored.astype(np.float64) - scales)
    # Rounding up the largest numbers would make them infinite.
    steps = 1.01 if LARGEST in (largest, least) else 0.51
    assert error.max() <= steps * step + 1e-6 * max(largest, least) + 2 * SMALLEST


@pytest.mark.parametrize("size", MAGNITUDES)
def test_doubly_quantised_blocks_of_any_size_stay_finite(size: float) -> None:
    weight = np.concatenate(
        [of_size(size, "on both sides", 640, np.float32), drawn(1, 640), np.zeros((1, 640))]
    )
    packed = quantize(weight, double_quant=True)
    unpacked = dequantize(packed)
    assert np.isfinite(unpacked).all()
    assert not unpacked[2].any()


def test_int4_of_blocks_that_do_not_straddle_zero_still_has_it() -> None:
    weight = np.linspace(0.5, 1, 64, dtype=np.float32)[None]
    up, down = (quantize(w, quant_type="int4") for w in (weight, -weight))
    np.testing.assert_allclose(dequantize(up), weight, atol=0.5 / 15 + 1e-6)
    np.testing.assert_array_equal(dequantize(down), -dequantize(up))


@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 150),
    block_size=st.sampled_from(BLOCK_SIZES[:3]),
    kind=st.sampled_from(["nf4", "nf4 double", "int4"]),
    power=st.integers(-20, 20),
    seed=st.integers(0, 1000),
)
def test_no_weight_is_further_off_than_half_the_widest_gap_of_its_block(
    rows: int, columns: int, block_size: int, kind: str, power: int, seed: int
) -> None:
    weight = drawn(rows, columns, seed=seed) * np.float32(10.0**power)
    packed = quantize(
        weight,
        quant_type="int4" if kind == "int4" else "nf4",
        block_size=block_size,
        double_quant=kind == "nf4 double",
    )
    off = np.abs(dequantize(packed).astype(np.float64) - weight).reshape(-1)
    assert packed.codes.size == -(-weight.size // 2)
    for start in range(0, weight.size, block_size):
        block = weight.reshape(-1)[start : start + block_size].astype(np.float64)
        largest = np.abs(block).max()
        if kind == "int4":
            bound = (max(block.max(), 0) - min(block.min(), 0)) / 15 / 2
        else:
            bound = np.diff(NF4).max() / 2 * largest
        if isinstance(packed.scales, DoubleQuantized):
            at = start // block_size
            bound += abs(packed.scales.restore(at, at + 1)[0] - largest)
        assert off[start : start + block_size].max() <= bound + 1e-5 * largest


@pytest.mark.parametrize("kind", ["nf4", "int4"])
def test_unpacked_weights_pack_to_the_same_codes(kind: QuantType) -> None:
    unpacked = dequantize(quantize(drawn(30, 70), quant_type=kind))
    again = dequantize(quantize(unpacked, quant_type=kind))
    np.testing.assert_allclose(again, unpacked, rtol=1e-6)


def test_double_quantised_scales_are_near_the_scales() -> None:
    scales = np.random.default_rng(0).gamma(20, 0.003, 1000).astype(np.float32)
    packed = double_quantize(scales)
    restored = packed.restore(0, 1000)
    for start in range(0, 1000, 256):
        part = slice(start, min(start + 256, 1000))
        gap = np.abs(scales[part] - packed.offset).max() * np.diff(DYNAMIC_MAP).max()
        assert np.abs(restored[part] - scales[part]).max() <= gap / 2 + 1e-6
    np.testing.assert_array_equal(packed.restore(250, 520), restored[250:520])


# ---------- memory ----------


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({}, 4.5),
        ({"double_quant": True}, 4.127),
        ({"quant_type": "int4"}, 4.625),
        ({"block_size": 128}, 4.25),
    ],
)
def test_bits_per_weight_of_a_real_sized_layer(settings: dict[str, object], bits: float) -> None:
    packed = quantize(drawn(1536, 576), **settings)  # type: ignore[arg-type]
    held = packed.codes.nbytes + (0 if packed.zero_points is None else packed.zero_points.nbytes)
    assert packed.nbytes == held + packed.scales.nbytes
    assert packed.bits_per_weight == 8 * packed.nbytes / (1536 * 576)
    assert packed.bits_per_weight == pytest.approx(bits, abs=5e-4)


# ---------- rows, dtypes, layouts ----------


@pytest.mark.parametrize("kind", ["nf4", "nf4 double", "int4"])
@pytest.mark.parametrize("block_size", [32, 64, 4096])
@pytest.mark.parametrize("shape", [(9, 64), (9, 33), (11, 101), (1, 1), (300, 7)])
def test_any_rows_are_unpacked_as_in_the_whole(
    kind: str, block_size: int, shape: tuple[int, int]
) -> None:
    packed = quantize(
        drawn(*shape),
        quant_type="int4" if kind == "int4" else "nf4",
        block_size=block_size,
        double_quant=kind == "nf4 double",
    )
    whole = dequantize(packed)
    scratch = np.full(packed.size + 2 * block_size, np.nan, np.float32)
    for start, stop in ((0, 1), (0, shape[0]), (shape[0] // 2, shape[0]), (shape[0] - 1, shape[0])):
        rows = unpack(packed, start, stop, scratch)
        np.testing.assert_array_equal(rows, whole[start:stop])
        assert np.shares_memory(rows, scratch)


def test_blocks_of_rows_share_their_scratch_and_cover_the_matrix_once() -> None:
    packed = quantize(drawn(300, 64))
    seen = [(at, rows.shape, rows.ctypes.data) for at, rows in row_blocks(packed)]
    covered = np.concatenate([np.arange(300)[at] for at, _, _ in seen])
    np.testing.assert_array_equal(covered, np.arange(300))
    assert len({address for _, _, address in seen}) == 1
    assert max(rows for _, (rows, _), _ in seen) < 300


def test_float64_is_unpacked_to_float64_and_has_the_codes_of_float32() -> None:
    weight = drawn(5, 70)
    single, double = quantize(weight), quantize(weight.astype(np.float64))
    np.testing.assert_array_equal(single.codes, double.codes)
    assert dequantize(single).dtype == np.float32
    assert dequantize(double).dtype == np.float64
    np.testing.assert_allclose(dequantize(double), dequantize(single), rtol=1e-7)


def test_a_weight_need_not_be_contiguous() -> None:
    weight = drawn(20, 30)
    straight = quantize(weight)
    np.testing.assert_array_equal(quantize(np.asfortranarray(weight)).codes, straight.codes)
    np.testing.assert_array_equal(quantize(weight[::-1][::-1]).codes, straight.codes)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_an_empty_weight_stays_empty(shape: tuple[int, int], *, double_quant: bool) -> None:
    packed = quantize(np.zeros(shape, np.float32), double_quant=double_quant)
    assert dequantize(packed).shape == shape
    assert packed.bits_per_weight == 0


def test_chunks_of_quantisation_leave_no_trace() -> None:
    weight = drawn(700, 101)  # more than 65,536, in blocks that run over the ends of rows
    packed = quantize(weight)
    last = 65_536 // 64
    parts = weight.reshape(-1)[:65_536], weight.reshape(-1)[65_536:]
    codes = [quantize(part[None]).codes for part in parts]
    np.testing.assert_array_equal(packed.codes, np.concatenate(codes))
    assert isinstance(packed.scales, np.ndarray)
    assert packed.scales[last] == np.abs(parts[1][:64]).max()


def test_quantising_leaves_the_weight_unchanged() -> None:
    weight = drawn(20, 30)
    weight.flags.writeable = False
    before = weight.copy()
    quantize(weight, quant_type="int4")
    quantize(weight, double_quant=True)
    np.testing.assert_array_equal(weight, before)


def test_a_copy_is_independent() -> None:
    packed = quantize(drawn(4, 64), double_quant=True)
    twin = copy.deepcopy(packed)
    before = dequantize(packed)
    twin.codes[:] = 0
    assert isinstance(twin.scales, DoubleQuantized)
    twin.scales.absmax[:] = 9
    np.testing.assert_array_equal(dequantize(packed), before)


# ---------- what is refused ----------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = drawn(2, 64).astype(np.float64)
    weight[1, 3] = value
    assert not fits_in_float32(weight)
    with pytest.raises(PeftError, match="expected finite float32 values"):
        quantize(weight)


def test_a_broadcast_zero_is_checked_once() -> None:
    hollow = np.broadcast_to(np.zeros((), np.float32), (10**6, 10**6))
    assert fits_in_float32(hollow)


def test_an_array_other_than_a_matrix_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected a matrix \(out, in\), got shape \(4,\)"):
        quantize(np.zeros(4, np.float32))


def test_one_error_lists_every_invalid_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        quantize(drawn(2, 2), quant_type="int4", block_size=48, double_quant=True)
    assert str(caught.value) == (
        "invalid settings for quantising:\n"
        "  - block_size=48 must be one of 32, 64, 128, 256, 512, 1024, 2048, 4096\n"
        "  - double_quant=True is for quant_type='nf4': int4's scales stay at 32 bits"
    )
