import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tests.reference.differences import assert_gradient
from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import (
    NF4_LEVELS,
    QLoRALayer,
    dequantize_4bit,
    dequantize_nf4,
    pack_4bit,
    quantize_nf4,
    quantize_to_4bit,
    unpack_4bit,
)

WEIGHTS = arrays_of.arrays(
    np.float32,
    arrays_of.array_shapes(max_dims=2, max_side=9),
    elements=st.floats(-1000, 1000, width=32),
)


@given(WEIGHTS)
def test_affine_codes_are_off_by_half_a_step_at_most(weight: Array) -> None:
    quantized, scale, zero_point = quantize_to_4bit(weight)
    assert quantized.shape == weight.shape
    assert quantized.max() <= 15
    error = np.abs(dequantize_4bit(quantized, scale, zero_point) - weight).max()
    assert error <= scale * 0.501 + 1e-3


def test_affine_codes_by_hand() -> None:
    weight = np.array([[-1.0, -0.5, 0.0], [0.26, 1.0, 0.5]])
    quantized, scale, zero_point = quantize_to_4bit(weight * 1.5)
    assert scale == pytest.approx(0.2)
    assert zero_point == 8
    assert quantized.tolist() == [[0, 4, 8], [10, 15, 12]]
    assert dequantize_4bit(quantized, scale, zero_point)[0, 2] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("largest", [5e-324, 2e-323, 1e-310, 2e-45, 2e-39, 1e-30, 3e38, 1e308])
@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_affine_codes_of_weights_of_any_size_are_off_by_half_a_step_at_most(
    largest: float, sign: int, dtype: type[np.floating]
) -> None:
    if largest > float(np.finfo(dtype).max):
        return
    weight = np.random.default_rng(0).uniform(-1, 1, 40)
    weight[:2] = -1, 1
    weight = (largest * (weight if sign == 0 else sign * np.abs(weight))).astype(dtype)
    quantized, scale, zero_point = quantize_to_4bit(weight)
    error = np.abs(
        dequantize_4bit(quantized, scale, zero_point) / 2 - weight.astype(np.float64) / 2
    )
    assert error.max() <= 0.2501 * scale + np.finfo(np.float64).smallest_subnormal


@pytest.mark.parametrize("value", [0.0, 3.5, -0.25])
def test_a_constant_weight_comes_back_exactly(value: float) -> None:
    weight = np.full((3, 4), value)
    assert (dequantize_4bit(*quantize_to_4bit(weight)) == weight).all()


def test_the_levels_of_nf4_come_back_exactly() -> None:
    codes, absmax = quantize_nf4(3 * NF4_LEVELS, block_size=16)
    assert codes.tolist() == list(range(16))
    assert (dequantize_nf4(codes, absmax, (16,), block_size=16) == 3 * NF4_LEVELS).all()


@given(WEIGHTS, st.sampled_from([2, 16, 64]))
def test_nf4_takes_the_nearest_level_of_its_block(weight: Array, block_size: int) -> None:
    codes, absmax = quantize_nf4(weight, block_size)
    back = dequantize_nf4(codes, absmax, weight.shape, block_size)
    scales = np.repeat(absmax, block_size)[: weight.size].reshape(weight.shape)
    nearest = np.abs(weight[..., None] - scales[..., None] * NF4_LEVELS).min(axis=-1)
    np.testing.assert_allclose(np.abs(back - weight), nearest, atol=1e-6 * float(absmax.max()))


@pytest.mark.parametrize("largest", [2.76e-43, 2e-39, 1e-37, 3e38])
def test_nf4_of_tiny_and_huge_blocks_takes_the_nearest_level(largest: float) -> None:
    weight = largest * np.array([1, -0.5, 0.25, 0.1, 0])
    codes, absmax = quantize_nf4(weight, block_size=5)
    assert codes.tolist() == [15, 2, 10, 8, 7]
    np.testing.assert_allclose(absmax, [largest], rtol=0.01)


def test_nf4_of_a_number_beyond_float32_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected values within float32's range, got 1e\+39"):
        quantize_nf4(np.array([1e39, 0.0]))


def test_nf4_keeps_normal_weights_to_nine_percent(rng: np.random.Generator) -> None:
    weight = 0.02 * rng.standard_normal((256, 256))
    back = dequantize_nf4(*quantize_nf4(weight), weight.shape)
    error = np.linalg.norm(back - weight) / np.linalg.norm(weight)
    assert error == pytest.approx(0.0920, abs=0.001)


def test_a_block_of_zeros_stays_zero() -> None:
    codes, absmax = quantize_nf4(np.zeros((2, 64)))
    assert not dequantize_nf4(codes, absmax, (2, 64)).any()


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_two_codes_fit_a_byte(rng: np.random.Generator, count: int) -> None:
    codes = rng.integers(0, 16, count).astype(np.uint8)
    packed = pack_4bit(codes)
    assert packed.nbytes == (count + 1) // 2
    assert packed[0] >> 4 == codes[0], "the first code is the high half"
    assert (unpack_4bit(packed, count) == codes).all()


def qlora(rng: np.random.Generator) -> QLoRALayer:
    made = QLoRALayer(*quantize_to_4bit(rng.standard_normal((4, 5))), rank=2, rng=rng)
    made.lora.B = rng.standard_normal((4, 2))
    return made


def test_qlora_is_lora_on_the_dequantised_weight(rng: np.random.Generator) -> None:
    made, x = qlora(rng), rng.standard_normal((2, 3, 5))
    assert made.num_parameters() == 2 * (5 + 4)
    update = 8.0 * made.lora.B @ made.lora.A
    np.testing.assert_allclose(made.forward(x), x @ (made.weight() + update).T, rtol=1e-12)
    np.testing.assert_allclose(x @ made.merge().T, made.forward(x), rtol=1e-12)


def test_the_gradients_of_qlora_agree_with_differences(rng: np.random.Generator) -> None:
    made, x, g = qlora(rng), rng.standard_normal((3, 5)), rng.standard_normal((3, 4))
    made.forward(x)
    grad_x = made.backward(g)
    lora = made.lora
    for array, grad in ((x, grad_x), (lora.A, lora.A_grad), (lora.B, lora.B_grad)):
        assert_gradient(lambda: made.forward(x), g, array, grad)


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = np.array([[1.0, np.nan], [np.inf, 1.0]])
    for quantize in (quantize_to_4bit, quantize_nf4):
        with pytest.raises(ValueError, match=r"shape \(2, 2\) with 2 values that are not finite"):
            quantize(weight)
        with pytest.raises(ValueError, match="shape"):
            quantize(np.empty((0, 4)))
    with pytest.raises(ValueError, match="expected at least 1, got block_size=0"):
        quantize_nf4(np.ones(4), 0)
    with pytest.raises(ValueError, match=r"weight_4bit: expected shape \(out, in\), got \(4,\)"):
        QLoRALayer(np.zeros(4, np.uint8), 1.0, 0)
