"""Double quantisation: scales at 8 bits (Dettmers et al. 2023, arXiv 2305.14314, section 3).

The blocks' scales are themselves quantised, 256 at a time:

    scale ≈ D[code] · m + o,    o = mean(scales),  m = max |scale - o| over 256 scales

D is the signed 8-bit dynamic map (Dettmers 2015, arXiv 1511.04561): fractions whose bits grow with
the exponent, from 10⁻⁶ to 1. With NF4 in blocks of 64, a weight then takes
4 + 8/64 + 32/(64 · 256) = 4.127 bits instead of 4 + 32/64 = 4.5.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["DoubleQuantized", "double_quantize"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BLOCK = 256  # scales that share one m
GRID = np.float32(65_535)
FLOAT32_MAX = float(np.finfo(np.float32).max)


def _dynamic_map() -> Floats:
    """256 sorted values: ±10ᵉ times the centres of 2ⁱ equal parts of [0.1, 1], e = i - 6, 0 and 1.

    Rounded as in bitsandbytes: float32 boundaries, computed from the nearer end of [0.1, 1].
    """
    low = np.float32(0.1)
    values = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for i in range(7):
        parts = 2**i
        step, k = float((1 - low) / np.float32(parts)), np.arange(parts + 1)
        below = k < (parts + 1) // 2
        boundaries = np.where(below, float(low) + step * k, 1 - step * (parts - k))
        edges = boundaries.astype(np.float32)
        centres = np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [centres, -centres]
    return np.sort(np.concatenate(values))


DYNAMIC_MAP = _dynamic_map()
_MIDPOINTS = np.float32(0.5) * (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:])


@dataclass(frozen=True, eq=False)
class DoubleQuantized:
    """float32 scales at 8 bits.

    codes: (n,), one per scale.
    absmax: (⌈n / 256⌉,), m per 256 scales.
    offset: o.
    """

    codes: Bytes = field(repr=False)
    absmax: Floats = field(repr=False)
    offset: np.float32

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes

    def restore(self, start: int, stop: int) -> Floats:
        """Compute D[code] · m + o of the scales start..stop: (stop - start,)."""
        scales = DYNAMIC_MAP[self.codes[start:stop]]
        scales *= self.absmax[np.arange(start, stop) // BLOCK]
        scales += self.offset
        return scales


def double_quantize(scales: Floats) -> DoubleQuantized:
    """Store scales (n,) at 8 bits, with the same bytes as bitsandbytes on a CPU.

    Like bitsandbytes, snap (scale - o) / m to a grid of 65,536 points, and take the nearest code;
    ties go to the lower one.
    """
    offset = np.float32(scales.mean(dtype=np.float64) if scales.size else 0)
    centred = np.zeros(-(-scales.size // BLOCK) * BLOCK, np.float32)
    np.subtract(scales, offset, out=centred[: scales.size])
    blocks = centred.reshape(-1, BLOCK)
    absmax = np.abs(blocks).max(axis=1, initial=0)
    some = absmax > 0
    normed = blocks / np.where(some, absmax, 1)[:, None]
    place = ((normed + 1) * np.float32(0.5) * GRID + np.float32(0.5)).astype(np.int32)
    snapped = np.float32(2) * place.astype(np.float32) / GRID - 1
    codes = np.where(some[:, None], np.searchsorted(_MIDPOINTS, snapped), 0)
    # A code may round float32's largest numbers up to infinity: take the one below it.
    codes -= DYNAMIC_MAP[codes].astype(np.float64) * absmax[:, None] + offset > FLOAT32_MAX
    codes = codes.astype(np.uint8).reshape(-1)[: scales.size].copy()
    return DoubleQuantized(codes, absmax, offset)
