"""Four-bit weights, and QLoRA on them (Dettmers et al. 2023, arXiv 2305.14314).

Affine, one scale for the whole weight (Jacob et al. 2017, arXiv 1712.05877, eq. 1):

    s = (max W - min W) / 15
    z = round(-min W / s)
    q = round(W / s) + z, kept in 0 ... 15
    W' = s (q - z)                            off by s / 2 at most

The zero point z is the code that stands for 0: a whole number, kept as a float, and outside
0 ... 15 if all of W has one sign. The other usual form has an offset in the weight's own units,
W' = s q + m; the same codes have m = -s z there, which is min W up to half a step.

NF4, in blocks of 64 values (section 3): the nearest of 16 levels that suit normally distributed
weights, with

    a = max |block|
    q = argmin |W / a - level(q)|
    W' = a level(q)

QLoRA is LoRA on a 4-bit weight: y = x W'ᵀ + s (x Aᵀ) Bᵀ. The codes get no gradient; all else is
as in LoRA.
"""

import math
import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinygrad_peft.reference._basics import Array, check_sizes
from tinygrad_peft.reference.lora import LoRALayer

__all__ = [
    "NF4_LEVELS",
    "QLoRALayer",
    "dequantize_4bit",
    "dequantize_nf4",
    "pack_4bit",
    "quantize_nf4",
    "quantize_to_4bit",
    "unpack_4bit",
]

# The values of appendix E.
NF4_LEVELS: Array = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)
NF4_LEVELS.flags.writeable = False
Codes: TypeAlias = npt.NDArray[np.uint8]


def quantize_to_4bit(weight: Array) -> tuple[Codes, float, float]:
    """Return (codes 0 to 15 of the weight's shape, s, z), by the affine formula.

    z is the code of 0, so that W' = s (q - z). The form with an offset, W' = s q + m, has m = -s z.

    Raises:
        ValueError: an empty weight, or values that are not finite.
    """
    _check_finite(weight)
    low, high = float(weight.min()), float(weight.max())
    # s = (max W - min W) / 15; a constant weight is its own scale, and comes back exactly
    scale = _affine_scale(low, high) or abs(low) or 1.0
    # z = round(-min W / s)
    zero_point = float(round(-low / scale))
    # q = round(W / s) + z, kept in 0 ... 15; a subnormal s would be rounded in the weight's dtype
    precise = weight if scale >= np.finfo(weight.dtype).tiny else weight.astype(np.float64)
    quantized = np.clip(np.round(precise / scale) + zero_point, 0, 15)
    return quantized.astype(np.uint8), scale, zero_point


def dequantize_4bit(quantized: Codes, scale: float, zero_point: float) -> Array:
    """Return the weight of the codes, s (q - z), in float64."""
    # W' = s (q - z)
    return scale * (quantized.astype(np.float64) - zero_point)


def quantize_nf4(weight: Array, block_size: int = 64) -> tuple[Codes, Array]:
    """(codes of all n values in a row, each block's absmax), computed in float32.

    Raises:
        ValueError: a block size below 1, an empty weight, or one that holds NaN, infinity, or a
            number beyond float32's range.
    """
    check_sizes(block_size=block_size)
    _check_finite(weight)
    largest = np.abs(weight).max()
    if largest > np.finfo(np.float32).max:
        raise ValueError(f"weight: expected values within float32's range, got {largest:g}")
    blocks = _in_blocks(weight.astype(np.float32).ravel(), block_size)
    # a = max |block|
    absmax = np.abs(blocks).max(axis=1)  # (blocks,)
    # W / a, in float64, where 1 / a is finite for every a; a block of zeros stays one
    scaled = blocks * (1 / np.where(absmax > 0, absmax, 1).astype(np.float64))[:, None]
    # q = argmin |W / a - level(q)|: how many midpoints of neighbouring levels are below
    codes = np.searchsorted((NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2, scaled, side="left")
    return codes.ravel()[: weight.size].astype(np.uint8), absmax


def dequantize_nf4(
    codes: Codes, absmax: Array, shape: tuple[int, ...], block_size: int = 64
) -> Array:
    """Restore the weight in its shape, in float32."""
    # W' = a level(q)
    return (np.repeat(absmax, block_size)[: codes.size] * NF4_LEVELS[codes]).reshape(shape)


def pack_4bit(codes: Codes) -> Codes:
    """Two codes a byte, the first in the high half: (n,) -> (⌈n / 2⌉,)."""
    pairs = _in_blocks(codes.ravel(), 2)
    packed: Codes = (pairs[:, 0] << 4) | pairs[:, 1]
    return packed


def unpack_4bit(packed: Codes, count: int) -> Codes:
    """Unpack the first `count` codes of `pack_4bit`'s bytes."""
    return np.stack([packed >> 4, packed & 15], axis=1).ravel()[:count]


class QLoRALayer:
    """LoRA on a weight of 4-bit codes, which is dequantised for every use.

    weight_4bit (out, in), scale and zero_point as `quantize_to_4bit` returns them. `lora` holds the
    matrices and their gradients; rng is as for `LoRALayer`.

    Raises:
        ValueError: a rank below 1, or a weight without two axes.
    """

    def __init__(
        self,
        weight_4bit: Codes,
        scale: float,
        zero_point: float,
        rank: int = 8,
        alpha: float = 16.0,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        if weight_4bit.ndim != 2:
            raise ValueError(f"weight_4bit: expected shape (out, in), got {weight_4bit.shape}")
        self.out_features, self.in_features = weight_4bit.shape
        self.rank = rank
        self.weight_4bit, self.scale, self.zero_point = weight_4bit, scale, zero_point
        self.lora = LoRALayer(self.in_features, self.out_features, rank, alpha, rng=rng)

    def forward(self, x: Array) -> Array:
        """Compute y: (..., in) -> (..., out)."""
        # y = x W'ᵀ + s (x Aᵀ) Bᵀ
        return self.lora.forward(x, self.weight())

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of x: (..., out) -> (..., in)."""
        return self.lora.backward(grad_output)

    def merge(self) -> Array:
        """Return the plain weight with the same output, in floats: (out, in)."""
        # W' + s B A
        return self.lora.merge(self.weight())

    def weight(self) -> Array:
        """Return W': (out, in)."""
        return dequantize_4bit(self.weight_4bit, self.scale, self.zero_point)

    def num_parameters(self) -> int:
        """Return the number of trained parameters: r (in + out)."""
        return self.lora.num_parameters()


def _affine_scale(low: float, high: float) -> float:
    """(high - low) / 15, also where high - low overflows, and where it is subnormal."""
    scale = (high - low) / 15 if math.isfinite(high - low) else high / 15 - low / 15
    if 0 < high - low < 15 * sys.float_info.min:
        # A multiple of the smallest number, rounded up: rounded down, 15 s would miss the ends.
        scale = math.ceil((high - low) / math.ulp(0.0) / 15) * math.ulp(0.0)
    return scale


def _in_blocks(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """(n,) -> (blocks, size), with zeros after the last value."""
    return np.pad(values, (0, -len(values) % size)).reshape(-1, size)


def _check_finite(weight: Array) -> None:
    wrong = int(weight.size - np.isfinite(weight).sum())
    if weight.size == 0 or wrong:
        raise ValueError(
            f"weight: expected a non-empty array of finite numbers, got shape {weight.shape} "
            f"with {wrong} values that are not finite"
        )
