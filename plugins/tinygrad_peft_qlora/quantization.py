"""Weights at 4 bits (Dettmers et al. 2023, arXiv 2305.14314, section 3).

The weight is flattened in row order and cut into blocks; the last one may be short. Each number
becomes one of 16 codes, two per byte, the first in the high half:

    nf4:   w ≈ a · N[c]          a = max |w| over the block, c the N nearest to w / a
    int4:  w ≈ s · (c - z)       s = (max(w, 0) - min(w, 0)) / 15,  z = round(-min(w, 0) / s)

N holds 16 quantiles of a normal distribution, for the least loss on normally distributed weights.
The bytes and a equal bitsandbytes' bit for bit wherever a is 0 or at least 1e-38. For smaller a,
bitsandbytes divides by 1e-38, which is far from the nearest code. In int4, zero is exact, and so is
a block of one value v: its s is |v|.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import ConfigError, PeftError, ShapeError, listed
from tinygrad_peft_qlora.double import DoubleQuantized, double_quantize

__all__ = [
    "BLOCK_SIZES",
    "QuantType",
    "QuantizedWeight",
    "dequantize",
    "fits_in_float32",
    "quantize",
    "row_blocks",
    "setting_problems",
    "unpack",
]

QuantType: TypeAlias = Literal["nf4", "int4"]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_MIDPOINTS = (NF4[:-1] + NF4[1:]) / np.float32(2)
_NF4_ZERO = 7
_FLOAT32 = np.finfo(np.float32)
_LEAST_ABSMAX = np.float32(1e-38)  # the least a with a finite 1 / a, as in bitsandbytes
_LIFT = np.float32(2**100)  # multiplying subnormal numbers by it is exact

# Weights quantised at a time, so that the work stays within the cache.
_CHUNK = 65_536  # a multiple of every block size
# Rows unpacked at a time: fewer make slow products, more leave the second-level cache before use.
_ROWS = 128


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A matrix (out, in) at 4 bits.

    codes: (⌈out · in / 2⌉,), two codes per byte.
    scales: a or s per block, at 32 bits or at 8.
    zero_points: z per block; None for nf4.
    dtype: float32 or float64, of the original and the unpacked matrix.
    """

    codes: Bytes = field(repr=False)
    scales: Floats | DoubleQuantized = field(repr=False)
    zero_points: Bytes | None = field(repr=False)
    shape: tuple[int, int]
    quant_type: QuantType
    block_size: int
    dtype: np.dtype[np.floating]

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """The size of codes, scales and zero points."""
        zero_points = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.codes.nbytes + self.scales.nbytes + zero_points

    @property
    def bits_per_weight(self) -> float:
        """4, plus the share of the blocks' scales and zero points."""
        return 8 * self.nbytes / self.size if self.size else 0.0

    @property
    def double_quant(self) -> bool:
        """True where the scales are stored at 8 bits."""
        return isinstance(self.scales, DoubleQuantized)


def setting_problems(quant_type: str, block_size: int, *, double_quant: bool) -> list[str]:
    """List problems of settings with a known `quant_type`."""
    found = []
    if block_size not in BLOCK_SIZES:
        found.append(f"block_size={block_size} must be one of {', '.join(map(str, BLOCK_SIZES))}")
    if double_quant and quant_type == "int4":
        found.append("double_quant=True is for quant_type='nf4': int4's scales stay at 32 bits")
    return found


# ---------- packing ----------


def quantize(
    weight: Array,
    *,
    quant_type: QuantType = "nf4",
    block_size: int = 64,
    double_quant: bool = False,
) -> QuantizedWeight:
    """Quantise a weight (out, in) to 4 bits. float64 is rounded to float32 first.

    Raises:
        ConfigError: invalid settings.
        ShapeError: the weight is not a matrix.
        PeftError: the weight holds NaN, infinity, or a number too large for float32.
    """
    problems = setting_problems(quant_type, block_size, double_quant=double_quant)
    if quant_type not in get_args(QuantType):
        problems.append(f"quant_type={quant_type!r} must be 'nf4' or 'int4'")
    if problems:
        raise ConfigError(f"invalid settings for quantising:\n{listed(problems)}")
    if weight.ndim != 2:
        raise ShapeError(f"quantize: expected a matrix (out, in), got shape {weight.shape}")
    if not fits_in_float32(weight):
        raise PeftError("quantize: expected finite float32 values")
    flat = weight.astype(np.float32, copy=False).reshape(-1)
    codes, scales, zero_points = _encoded(flat, quant_type, block_size)
    return QuantizedWeight(
        codes,
        double_quantize(scales) if double_quant else scales,
        zero_points,
        (weight.shape[0], weight.shape[1]),
        quant_type,
        block_size,
        np.dtype(np.float64 if weight.dtype == np.float64 else np.float32),
    )


def fits_in_float32(array: Array) -> bool:
    """Tell whether all elements are finite in float32."""
    # Along a stride of zero all elements are one, as in a model without weights.
    distinct = array[tuple(slice(None if step else 1) for step in array.strides)]
    limit = _FLOAT32.max
    return bool(distinct.min(initial=0) >= -limit and distinct.max(initial=0) <= limit)


def _encoded(
    flat: Floats, quant_type: QuantType, block_size: int
) -> tuple[Bytes, Floats, Bytes | None]:
    """Return the packed codes of all weights, and their blocks' scales and zero points."""
    codes = np.empty(-(-flat.size // 2), np.uint8)
    scales = np.empty(-(-flat.size // block_size), np.float32)
    zero_points = np.empty(scales.shape, np.uint8) if quant_type == "int4" else None
    for start, blocks in _chunks(flat, block_size):
        at = slice(start // block_size, start // block_size + len(blocks))
        zero = _NF4_ZERO
        if zero_points is None:
            chosen, scales[at] = _encode_nf4(blocks, short=blocks.shape[1] < block_size)
        else:
            chosen, scales[at], zero_points[at] = _encode_int4(blocks)
            zero = zero_points[at][-1]
        codes[start // 2 : (start + blocks.size + 1) // 2] = _packed(chosen.reshape(-1), zero)
    return codes, scales, zero_points


def _chunks(flat: Floats, block_size: int) -> Iterator[tuple[int, Floats]]:
    """Yield each chunk's start and its blocks (count, block_size); a short last block alone."""
    whole = flat.size // block_size * block_size
    for start in range(0, whole, _CHUNK):
        yield start, flat[start : min(start + _CHUNK, whole)].reshape(-1, block_size)
    if whole < flat.size:
        yield whole, flat[whole:].reshape(1, -1)


def _encode_nf4(blocks: Floats, *, short: bool) -> tuple[Bytes, Floats]:
    """Return codes (count, size) and a (count,)."""
    absmax = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    blocks, divisor = _lifted(blocks, absmax)
    if short:  # as in bitsandbytes: divide, and store 1e-38 for an a of 0
        absmax = np.where(absmax > 0, absmax, _LEAST_ABSMAX)
        scaled = blocks / divisor[:, None]
    else:
        scaled = blocks * (1 / divisor)[:, None]
    codes = np.zeros(blocks.shape, np.uint8)
    above = np.empty(blocks.shape, np.bool_)
    for midpoint in _MIDPOINTS:  # ten times as fast as np.searchsorted, with the same result
        codes += np.greater(scaled, midpoint, out=above).view(np.uint8)
    return codes, absmax


def _lifted(blocks: Floats, absmax: Floats) -> tuple[Floats, Floats]:
    """Return the blocks and their divisors; blocks with a below 1e-38 are multiplied by 2¹⁰⁰."""
    small = absmax < _LEAST_ABSMAX
    if not small.any():
        return blocks, absmax
    factor = np.where(small, _LIFT, np.float32(1))
    return blocks * factor[:, None], np.maximum(absmax * factor, _LEAST_ABSMAX)


def _encode_int4(blocks: Floats) -> tuple[Bytes, Floats, Bytes]:
    """Return codes (count, size), s (count,) and z (count,)."""
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    bottom, top = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.where(low == high, np.abs(low), _int4_scale(bottom, top))
    scale = np.where(scale > 0, scale, 1).astype(np.float32)  # for a block of zeros
    zero_point = np.rint(-bottom / scale)
    # Rounding may take a step of a huge block out of float32's range.
    most = np.floor(_FLOAT32.max / np.maximum(scale, 1))[:, None]
    steps = np.clip(np.rint(blocks / scale[:, None]), -most, most)  # (count, size)
    codes = np.clip(steps + zero_point[:, None], 0, 15)
    return codes.astype(np.uint8), scale, zero_point.astype(np.uint8)


def _int4_scale(bottom: Floats, top: Floats) -> Floats:
    """(top - bottom) / 15, so that 15 s reaches both ends and no step leaves float32's range."""
    scale: Floats = (top / 15 - bottom / 15).astype(np.float32, copy=False)
    huge, tiny = scale > _FLOAT32.max / 8, scale < _FLOAT32.tiny
    scale[huge] = np.maximum(-bottom, top)[huge] / 7.5  # 7 steps on each side of zero
    # Subnormal numbers are multiples of the smallest: rounded down, 15 s would miss the ends.
    least = float(_FLOAT32.smallest_subnormal)
    width = top[tiny].astype(np.float64) - bottom[tiny]
    scale[tiny] = np.ceil(width / 15 / least) * least
    return scale


def _packed(codes: Bytes, zero: int) -> Bytes:
    """Pack two codes per byte; pad the last one with the code of zero."""
    if codes.size % 2:
        codes = np.append(codes, np.uint8(zero))
    high, low = codes[::2], codes[1::2]
    return np.left_shift(high, np.uint8(4)) | low


# ---------- unpacking ----------


def _pairs(values: Array) -> npt.NDArray[np.complexfloating]:
    """Return a table (256,) with the two values of each byte in one item."""
    table = np.stack([values.repeat(16), np.tile(values, 16)], axis=1)  # (256, 2)
    return table.view(np.result_type(values, np.complex64)).reshape(256)


_TABLES = {
    (quant_type, np.dtype(dtype)): _pairs(values.astype(dtype))
    for quant_type, values in (("nf4", NF4), ("int4", np.arange(16)))
    for dtype in (np.float32, np.float64)
}


def unpack(weight: QuantizedWeight, start: int, stop: int, out: Array) -> Array:
    """Unpack the rows start..stop (stop - start, in) into a view of `out`.

    `out` is scratch of the weight's dtype, (n,) with n at least the rows' elements and two blocks.
    """
    columns, size = weight.shape[1], weight.block_size
    first_block, end_block = start * columns // size, -(-stop * columns // size)
    first, end = first_block * size, min(end_block * size, 2 * weight.codes.size)
    values = out[: end - first]
    table = _TABLES[weight.quant_type, weight.dtype]
    # No code is out of range, so clipping does nothing; it lets take write directly into `out`.
    codes = weight.codes[first // 2 : end // 2]
    np.take(table, codes, out=values.view(table.dtype), mode="clip")
    whole = values.size // size
    blocks, short = values[: whole * size].reshape(whole, size), values[whole * size :]
    scales, zero_points = _statistics(weight, first_block, end_block)
    if zero_points is not None:
        blocks -= zero_points[:whole, None]
        short -= zero_points[whole:]
    blocks *= scales[:whole, None]
    short *= scales[whole:]
    return values[start * columns - first : stop * columns - first].reshape(stop - start, columns)


def _statistics(weight: QuantizedWeight, start: int, stop: int) -> tuple[Floats, Floats | None]:
    """Return the scales and zero points of the blocks start..stop."""
    scales, zero_points = weight.scales, weight.zero_points
    if isinstance(scales, DoubleQuantized):
        return scales.restore(start, stop), None
    shift = None if zero_points is None else zero_points[start:stop].astype(np.float32)
    return scales[start:stop], shift


def row_blocks(weight: QuantizedWeight) -> Iterator[tuple[slice, Array]]:
    """Yield blocks of W's rows, each in the same scratch: use one before the next."""
    rows, columns = weight.shape
    scratch = np.empty(min(rows, _ROWS) * columns + 2 * weight.block_size, weight.dtype)
    for start in range(0, rows, _ROWS):
        stop = min(start + _ROWS, rows)
        yield slice(start, stop), unpack(weight, start, stop, scratch)


def dequantize(weight: QuantizedWeight) -> Array:
    """Unpack the whole W (out, in) into a new array."""
    whole = np.empty(weight.shape, weight.dtype)
    for at, rows in row_blocks(weight):
        whole[at] = rows
    return whole
