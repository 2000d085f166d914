"""Codes, scales and unpacked weights are those of bitsandbytes on this machine, to the bit."""

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb

from tinygrad_peft.arrays import Array
from tinygrad_peft_qlora import QuantizedWeight, dequantize, quantize
from tinygrad_peft_qlora.double import DYNAMIC_MAP, DoubleQuantized

SHAPES = [
    *((1, 1), (1, 63), (2, 64), (1, 65), (3, 7)),
    *((5, 129), (33, 65), (256, 256), (576, 192), (1000, 333)),
]
SIZES = [32, 64, 128, 4096]


def drawn(*shape: int) -> Array:
    """Weights as they are in models: most of them near zero, a few far away, some blocks zero."""
    rng = np.random.default_rng(shape)
    weight = (rng.standard_t(4, shape) * 0.02).astype(np.float32)
    weight.reshape(-1)[100:300] = 0
    return weight


def both(
    weight: Array, block_size: int, *, double_quant: bool
) -> tuple[QuantizedWeight, np.ndarray, bnb.QuantState, Array]:
    """Ours; and the codes, the state and the unpacked weight of bitsandbytes.

    It gets the weight as one row: its kernel for AVX-512 unpacks a block that goes on in the next
    row with another block's scale.
    """
    codes, state = bnb.quantize_4bit(
        torch.from_numpy(weight.reshape(1, -1)),
        blocksize=block_size,
        quant_type="nf4",
        compress_statistics=double_quant,
    )
    unpacked = bnb.dequantize_4bit(codes, state).numpy().reshape(weight.shape)
    ours = quantize(weight, block_size=block_size, double_quant=double_quant)
    return ours, codes.numpy().reshape(-1), state, unpacked


@pytest.mark.parametrize("block_size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_has_their_bytes(shape: tuple[int, int], block_size: int) -> None:
    ours, codes, state, unpacked = both(drawn(*shape), block_size, double_quant=False)
    np.testing.assert_array_equal(ours.codes, codes)
    np.testing.assert_array_equal(ours.scales, state.absmax.numpy())
    np.testing.assert_array_equal(dequantize(ours), unpacked)


@pytest.mark.parametrize("block_size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_double_quantisation_has_their_bytes(shape: tuple[int, int], block_size: int) -> None:
    weight = drawn(*shape)
    ours, codes, state, unpacked = both(weight, block_size, double_quant=True)
    assert isinstance(ours.scales, DoubleQuantized)
    np.testing.assert_array_equal(ours.codes, codes)
    theirs = state.offset.numpy()
    if ours.scales.offset == theirs:
        np.testing.assert_array_equal(ours.scales.codes, state.absmax.numpy())
        np.testing.assert_array_equal(ours.scales.absmax, state.state2.absmax.numpy())
        np.testing.assert_array_equal(dequantize(ours), unpacked)
    else:  # torch adds up in an order of its own, which may give the mean another last bit
        assert abs(ours.scales.offset - theirs) <= np.spacing(theirs)
        np.testing.assert_allclose(dequantize(ours), unpacked, rtol=1e-3, atol=1e-6)


def test_most_means_are_theirs_to_the_bit() -> None:
    same = 0
    for shape in SHAPES:
        ours, _, state, _ = both(drawn(*shape), 64, double_quant=True)
        assert isinstance(ours.scales, DoubleQuantized)
        same += bool(ours.scales.offset == state.offset.item())
    assert same >= len(SHAPES) / 2


def test_the_8_bit_map_is_theirs() -> None:
    np.testing.assert_array_equal(DYNAMIC_MAP, bnb.create_dynamic_map().numpy())


@pytest.mark.parametrize(("largest", "theirs", "ours"), [(2e-39, 0.84, 0.12), (2e-38, 0.12, 0.12)])
def test_bitsandbytes_loses_blocks_below_1e_38_and_ours_does_not(
    largest: float, theirs: float, ours: float
) -> None:
    """The largest error of each, as a part of the largest weight."""
    weight = (largest * np.linspace(-1, 1, 64)[None]).astype(np.float32)
    packed, _, state, unpacked = both(weight, 64, double_quant=False)
    np.testing.assert_array_equal(packed.scales, state.absmax.numpy())
    assert np.abs(unpacked - weight).max() / largest == pytest.approx(theirs, abs=0.03)
    assert np.abs(dequantize(packed) - weight).max() / largest == pytest.approx(ours, abs=0.03)
