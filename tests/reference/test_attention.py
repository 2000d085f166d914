from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import (
    LoRALinear,
    LoRAMultiHeadAttention,
    apply_lora_to_attention,
    attention,
    attention_backward,
    mask_bias,
)

CAUSAL = np.tri(4, dtype=bool)
MASKS: dict[str, npt.NDArray[Any] | None] = {
    "none": None,
    "causal": CAUSAL,
    "added": np.where(CAUSAL, 0.0, -np.inf),
    "padding": np.array([[True] * 4, [True, True, False, False]])[:, None, None, :],
}


def adapted(layer: LoRALinear | Array) -> LoRALinear:
    assert isinstance(layer, LoRALinear)
    return layer


def module(rng: np.random.Generator, **settings: Any) -> LoRAMultiHeadAttention:  # noqa: ANN401
    """Attention of width 6 with weights and updates that are not small."""
    weights = {name: 0.3 * rng.standard_normal((6, 6)) for name in "qkvo"}
    made = LoRAMultiHeadAttention(6, 2, rank=2, weights=weights, rng=rng, **settings)
    for layer in made.projections.values():
        if isinstance(layer, LoRALinear):
            layer.lora.B = 0.3 * rng.standard_normal((6, 2))
    return made


# ---------- the functions ----------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_gradients_of_attention_agree_with_differences(
    rng: np.random.Generator, mask: str, key_heads: int
) -> None:
    q, g = rng.standard_normal((2, 4, 4, 3)), rng.standard_normal((2, 4, 4, 3))
    k, v = rng.standard_normal((2, 4, key_heads, 3)), rng.standard_normal((2, 4, key_heads, 3))
    _, p = attention(q, k, v, MASKS[mask])
    grads = attention_backward(g, q, k, v, p)
    for array, grad in zip((q, k, v), grads, strict=True):
        assert_gradient(lambda: attention(q, k, v, MASKS[mask])[0], g, array, grad)


def test_one_query_and_one_head_are_the_textbook_formula(rng: np.random.Generator) -> None:
    q, k, v = rng.standard_normal(3), rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    weights = np.exp(k @ q / np.sqrt(3))
    expected = weights / weights.sum() @ v
    out, p = attention(q.reshape(1, 1, 1, 3), k.reshape(1, 4, 1, 3), v.reshape(1, 4, 1, 3))
    np.testing.assert_allclose(out.ravel(), expected, rtol=1e-12)
    np.testing.assert_allclose(p.ravel(), weights / weights.sum(), rtol=1e-12)


def test_what_is_masked_has_no_weight(rng: np.random.Generator) -> None:
    q = rng.standard_normal((2, 4, 1, 3))
    for name in ("causal", "added"):
        _, p = attention(q, q, q, MASKS[name])
        assert (p[:, :, ~CAUSAL] == 0).all()


def test_a_row_in_which_all_is_masked_stays_finite(rng: np.random.Generator) -> None:
    q = rng.standard_normal((1, 4, 1, 3))
    out, _ = attention(q, q, q, np.zeros((4, 4), dtype=bool))
    assert np.isfinite(out).all()


def test_float32_stays_float32() -> None:
    q = np.ones((1, 4, 1, 3), np.float32)
    out, _ = attention(q, q, q, CAUSAL)
    assert out.dtype == np.float32


def test_heads_that_do_not_fit_are_refused() -> None:
    q = np.ones((1, 4, 4, 3))
    with pytest.raises(ValueError, match="3 key heads do not divide 4 query heads"):
        attention(q, q[:, :, :3], q[:, :, :3])


def test_the_output_without_a_batch_equals_a_batch_of_one(rng: np.random.Generator) -> None:
    q, k, v, g = (rng.standard_normal((4, 2, 3)) for _ in range(4))
    out, p = attention(q, k, v, CAUSAL)
    batched, batched_p = attention(q[None], k[None], v[None], CAUSAL)
    assert (out == batched[0]).all()
    assert (p == batched_p[0]).all()
    grads = attention_backward(g, q, k, v, p)
    expected = attention_backward(g[None], q[None], k[None], v[None], batched_p)
    for grad, one in zip(grads, expected, strict=True):
        assert (grad == one[0]).all()


# ---------- masks ----------


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8, np.float32, np.float64])
def test_ones_and_zeros_are_booleans_in_every_dtype(dtype: type) -> None:
    assert (mask_bias(CAUSAL.astype(dtype)) == np.where(CAUSAL, 0.0, -1e9)).all()
    assert not mask_bias(np.ones((4, 4), dtype)).any(), "all may look"


@pytest.mark.parametrize("hidden", [-np.inf, -1e4, -1e9, np.finfo(np.float32).min])
def test_zero_and_a_large_negative_number_are_added(hidden: float) -> None:
    assert (mask_bias(np.where(CAUSAL, 0.0, hidden)) == np.where(CAUSAL, 0.0, -1e9)).all()
    assert (mask_bias(np.full((4, 4), hidden)) == -1e9).all()


def test_large_negative_integers_are_added_too() -> None:
    assert (mask_bias(np.where(CAUSAL, 0, -(10**9))) == np.where(CAUSAL, 0.0, -1e9)).all()


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_zeros_alone_hide_nothing_as_the_causal_mask_of_one_token(dtype: type) -> None:
    assert not mask_bias(np.zeros((4, 4), dtype)).any()
    assert not mask_bias(np.where(np.tri(1, dtype=bool), 0.0, -np.inf)).any()


def test_false_alone_hides_everything() -> None:
    assert (mask_bias(np.zeros((4, 4), dtype=bool)) == -1e9).all()


@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([0.0, 0.5], "got 0.5"),
        ([0.0, 2.0], "got 2.0"),
        ([0.0, -3.0], "got -3.0"),
        ([0.0, np.nan], "got nan"),
        ([0.0, np.inf], "got inf"),
        ([1.0, -np.inf], "got -inf beside 1"),
        ([1.0, 0.0, 0.5], "got 0.5 beside 1"),
    ],
)
def test_a_mask_that_means_nothing_is_refused(values: list[float], got: str) -> None:
    meant = "expected booleans, or 1 where a query may look and 0 elsewhere, or 0 where it may look"
    with pytest.raises(ValueError, match=f"mask: {meant} and -inf elsewhere; {got}$"):
        mask_bias(np.array(values))


def test_a_mask_of_text_or_of_another_shape_is_refused() -> None:
    q = np.ones((2, 4, 1, 3))
    with pytest.raises(ValueError, match="mask: expected booleans or numbers, got <U1"):
        attention(q, q, q, np.array(["x"]))
    message = r"mask: expected a shape that broadcasts to \(2, 1, 4, 4\), got \({}\)"
    with pytest.raises(ValueError, match=message.format("3, 4")):
        attention(q, q, q, np.ones((3, 4)))
    with pytest.raises(ValueError, match=message.format("5, 1, 1, 4, 4")):
        attention(q, q, q, np.ones((5, 1, 1, 4, 4)))


# ---------- LoRA on the projections ----------


def test_targets_become_layers_and_the_rest_is_unchanged(rng: np.random.Generator) -> None:
    wq, wk, wv, wo = (rng.standard_normal((6, 6)) for _ in range(4))
    layers = apply_lora_to_attention(wq, wk, wv, wo, rank=2, alpha=4.0)
    assert list(layers) == ["q", "k", "v", "o"]
    assert layers["k"] is wk
    assert layers["o"] is wo
    assert adapted(layers["q"]).weight is wq
    assert adapted(layers["v"]).lora.scaling == 2.0
    assert (adapted(layers["q"]).lora.A != adapted(layers["v"]).lora.A).all()


def test_an_unknown_projection_is_refused_as_a_target() -> None:
    with pytest.raises(ValueError, match="unknown target 'w', expected one of q, k, v, o"):
        LoRAMultiHeadAttention(6, 2, target_modules=("q", "w"))


def test_untrained_lora_does_not_change_attention(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 4, 6))
    weights = {name: rng.standard_normal((6, 6)) for name in "qkvo"}
    plain = LoRAMultiHeadAttention(6, 2, target_modules=(), weights=weights)
    lora = LoRAMultiHeadAttention(6, 2, weights=weights)
    assert (lora.forward(x) == plain.forward(x)).all()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o"), ("o",), ()])
def test_the_modules_gradients_agree_with_differences(
    rng: np.random.Generator, mask: str, targets: tuple[str, ...]
) -> None:
    made = module(rng, target_modules=targets)
    x, g = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 4, 6))

    def forward() -> Array:
        return made.forward(x, MASKS[mask])

    forward()
    grads: list[tuple[Array, Array]] = [(x, made.backward(g))]
    for name in targets:
        lora = adapted(made.projections[name]).lora
        grads += [(lora.A, lora.A_grad), (lora.B, lora.B_grad)]
    for array, grad in grads:
        assert_gradient(forward, g, array, grad)


def test_tokens_without_a_batch_go_through_the_module(rng: np.random.Generator) -> None:
    made, x, g = module(rng), rng.standard_normal((4, 6)), rng.standard_normal((4, 6))
    y = made.forward(x, CAUSAL)
    assert (y == made.forward(x[None], CAUSAL)[0]).all()
    made.forward(x, CAUSAL)
    grad = made.backward(g)
    assert_gradient(lambda: made.forward(x, CAUSAL), g, x, grad)


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o")])
def test_merging_keeps_the_output_and_leaves_nothing_to_train(
    rng: np.random.Generator, targets: tuple[str, ...]
) -> None:
    made, x = module(rng, target_modules=targets), rng.standard_normal((2, 4, 6))
    before = made.forward(x, CAUSAL)
    assert made.count_trainable_params() == len(targets) * 2 * (6 + 6)
    made.merge_lora()
    assert made.count_trainable_params() == 0
    np.testing.assert_allclose(made.forward(x, CAUSAL), before, rtol=1e-10)


def test_tokens_of_another_width_or_without_an_axis_are_refused() -> None:
    for shape in ((2, 4, 5), (6,)):
        with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., T, 6\), got"):
            LoRAMultiHeadAttention(6, 2).forward(np.ones(shape))


def test_heads_that_do_not_divide_and_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 heads do not divide a width of 6"):
        LoRAMultiHeadAttention(6, 4)
    with pytest.raises(ValueError, match="expected at least 1, got n_heads=0"):
        LoRAMultiHeadAttention(6, 0)
    square = np.ones((6, 6))
    with pytest.raises(ValueError, match="weights: expected q, k, v, o, got q, k"):
        LoRAMultiHeadAttention(6, 2, weights={"q": square, "k": square})
    uneven = {"q": square, "k": square, "v": square, "o": np.ones((6, 5))}
    with pytest.raises(ValueError, match=r"weights\['o'\]: expected shape \(6, 6\), got \(6, 5\)"):
        LoRAMultiHeadAttention(6, 2, weights=uneven)
