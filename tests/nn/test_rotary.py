import math

import numpy as np
import pytest

from tinygrad_peft.nn import RopeScaling, TransformerConfig
from tinygrad_peft.nn.rotary import RotaryAngles


def config(scaling: RopeScaling | None = None) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=1,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=1,
        max_position_embeddings=1,
        positions="rotary",
        rope_theta=500_000.0,
        rope_scaling=scaling,
    )


def test_angles_are_positions_times_powers_of_theta() -> None:
    cos, sin = RotaryAngles(config())(np.array([0, 3]), np.dtype(np.float64))
    expected = [[p * 500_000.0 ** (-2 * i / 64) for i in range(32)] for p in (0, 3)]

    np.testing.assert_allclose(cos, np.cos(expected), rtol=1e-12)
    np.testing.assert_allclose(sin, np.sin(expected), rtol=1e-12)


def test_large_positions_are_as_exact_as_small_ones_in_float32() -> None:
    positions = np.array([131_071])
    single, _ = RotaryAngles(config())(positions, np.dtype(np.float32))
    double, _ = RotaryAngles(config())(positions, np.dtype(np.float64))

    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=1e-7)


def test_linear_scaling_divides_every_frequency() -> None:
    scaled = RotaryAngles(config(RopeScaling(rope_type="linear", factor=4.0))).frequencies

    np.testing.assert_allclose(scaled, RotaryAngles(config()).frequencies / 4)


def test_llama3_scaling_stretches_long_waves_and_keeps_short_ones() -> None:
    scaling = RopeScaling(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    scaled = RotaryAngles(config(scaling)).frequencies
    for before, after in zip(RotaryAngles(config()).frequencies, scaled, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4:
            expected = before
        elif wavelength > 8192 / 1:
            expected = before / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * before / 8 + smooth * before
        assert after == pytest.approx(expected, rel=1e-12)
