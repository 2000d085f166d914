from collections.abc import Callable

import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import LoRALayer, LoRALinear, lora_backward

SHAPES = [(7, 5), (2, 3, 5)]


def layer(rng: np.random.Generator) -> LoRALayer:
    made = LoRALayer(5, 4, rank=2, alpha=3.0, rng=rng)
    made.B = rng.standard_normal((4, 2))
    return made


def drawn(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape)


def test_the_matrices_have_the_shapes_of_the_paper_and_change_nothing_at_first(
    rng: np.random.Generator,
) -> None:
    lora, weight, x = LoRALayer(5, 4), drawn(rng, 4, 5), drawn(rng, 3, 5)
    assert (lora.A.shape, lora.B.shape, lora.scaling) == ((8, 5), (4, 8), 2.0)
    assert lora.num_parameters() == 8 * (5 + 4)
    assert lora.A.any()
    assert (lora.forward(x, weight) == x @ weight.T).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_follows_the_formula(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    lora, weight, x = layer(rng), drawn(rng, 4, 5), drawn(rng, *shape)
    update = 1.5 * np.einsum("or,ri->oi", lora.B, lora.A)
    np.testing.assert_allclose(
        lora.forward(x, weight), np.einsum("...i,oi->...o", x, weight + update), rtol=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_agree_with_differences(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    lora, weight, x = layer(rng), drawn(rng, 4, 5), drawn(rng, *shape)
    g = drawn(rng, *shape[:-1], 4)

    def forward() -> Array:
        return lora.forward(x, weight)

    forward()
    grad_x = lora.backward(g)
    for array, grad in ((x, grad_x), (lora.A, lora.A_grad), (lora.B, lora.B_grad)):
        assert_gradient(forward, g, array, grad)


def test_the_function_gives_the_low_rank_paths_own_gradients(rng: np.random.Generator) -> None:
    A, B, x, g = drawn(rng, 2, 5), drawn(rng, 4, 2), drawn(rng, 2, 3, 5), drawn(rng, 2, 3, 4)
    grads = lora_backward(g, x, A, B, 0.7)
    for array, grad in zip((A, B, x), grads, strict=True):
        assert_gradient(lambda: 0.7 * (x @ A.T @ B.T), g, array, grad)


def test_a_merged_weight_gives_the_same_output(rng: np.random.Generator) -> None:
    lora, weight, x = layer(rng), drawn(rng, 4, 5), drawn(rng, 2, 3, 5)
    merged = lora.merge(weight)
    np.testing.assert_allclose(x @ merged.T, lora.forward(x, weight), rtol=1e-12)
    assert (lora.merge_weights(weight) == merged).all()


@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_with_lora_keeps_its_bias_and_merges(
    rng: np.random.Generator, biased: bool
) -> None:
    bias = drawn(rng, 4) if biased else None
    linear, x = LoRALinear(drawn(rng, 4, 5), bias, lora_rank=2, lora_alpha=3.0), drawn(rng, 3, 5)
    linear.lora.B = drawn(rng, 4, 2)
    weight, merged_bias = linear.merge()
    assert merged_bias is bias
    expected = x @ weight.T + (0 if bias is None else bias)
    np.testing.assert_allclose(linear.forward(x), expected, rtol=1e-12)
    assert linear.num_parameters() == 2 * (5 + 4)


def test_a_linear_layers_gradients_agree_with_differences(rng: np.random.Generator) -> None:
    linear = LoRALinear(drawn(rng, 4, 5), drawn(rng, 4), 2, rng=rng)
    linear.lora.B = drawn(rng, 4, 2)
    x, g = drawn(rng, 3, 5), drawn(rng, 3, 4)
    linear.forward(x)
    grad_x = linear.backward(g)
    assert_gradient(lambda: linear.forward(x), g, x, grad_x)
    assert_gradient(lambda: linear.forward(x), g, linear.lora.A, linear.lora.A_grad)


def test_float32_stays_float32(rng: np.random.Generator) -> None:
    lora, x = layer(rng), drawn(rng, 3, 5).astype(np.float32)
    lora.A, lora.B = lora.A.astype(np.float32), lora.B.astype(np.float32)
    assert lora.forward(x, drawn(rng, 4, 5).astype(np.float32)).dtype == np.float32
    assert lora.backward(np.ones((3, 4), np.float32)).dtype == np.float32
    assert lora.A_grad.dtype == lora.B_grad.dtype == np.float32


def test_the_same_generator_gives_the_same_matrices() -> None:
    one, two, other = (LoRALayer(5, 4, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one.A == two.A).all()
    assert (one.A != other.A).all()


def test_trained_matrices_become_a_layer_without_a_copy(
    rng: np.random.Generator, reseed: Callable[[], None]
) -> None:
    A, B = drawn(rng, 2, 5), drawn(rng, 4, 2)
    made, first = LoRALayer.of(A, B, 1.5), LoRALayer(5, 4).A
    assert made.A is A
    assert made.B is B
    assert (made.rank, made.in_features, made.out_features) == (2, 5, 4)
    assert (made.alpha, made.scaling) == (3.0, 1.5)
    reseed()
    assert (first == LoRALayer(5, 4).A).all(), "no number of the global generator is used up"
    message = r"expected A \(r, in\) and B \(out, r\), got \(2, 5\) and \({}\)"
    for shape in ((4, 3), (4, 2, 1)):
        with pytest.raises(ValueError, match=message.format(", ".join(map(str, shape)))):
            LoRALayer.of(A, drawn(rng, *shape))


def test_backward_without_forward_is_refused() -> None:
    with pytest.raises(RuntimeError, match="backward needs a forward before it"):
        LoRALayer(5, 4).backward(np.ones((3, 4)))


def test_sizes_below_one_are_refused_all_at_once() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got out_features=0, rank=-1"):
        LoRALayer(5, 0, rank=-1)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"W: expected shape \(4, 5\), got \(5, 4\)"):
        LoRALayer(5, 4).forward(np.ones((3, 5)), np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 5\), got \(3, 4\)"):
        LoRALayer(5, 4).forward(np.ones((3, 4)), np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"bias: expected shape \(4,\), got \(5,\)"):
        LoRALinear(np.ones((4, 5)), np.ones(5))
    with pytest.raises(ValueError, match=r"weight: expected shape \(out, in\), got \(4,\)"):
        LoRALinear(np.ones(4))
