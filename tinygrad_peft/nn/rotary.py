"""The angles of rotary position embedding (Su et al. 2021, section 3.2.2)."""

import math

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.nn.config import RopeScaling, TransformerConfig

__all__ = ["RotaryAngles"]


class RotaryAngles:
    """cos and sin of position x θ^(-2i/D), for i = 0 .. D/2 - 1."""

    def __init__(self, config: TransformerConfig) -> None:
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        self.frequencies: Array = config.rope_theta**-exponents  # (D/2,)
        if config.rope_scaling is not None:
            self.frequencies = _scaled(self.frequencies, config.rope_scaling)

    def __call__(self, positions: IntArray, dtype: np.dtype[np.floating]) -> tuple[Array, Array]:
        """Map positions (...) to cos and sin (..., D/2), computed in float64."""
        angles = positions[..., None] * self.frequencies
        return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _scaled(frequencies: Array, scaling: RopeScaling) -> Array:
    slow = frequencies / scaling.factor
    if scaling.rope_type == "linear":
        return slow
    # Turns within the original context decide: few, stretched; many, kept; between, interpolated.
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray((1 - smooth) * slow + smooth * frequencies)
