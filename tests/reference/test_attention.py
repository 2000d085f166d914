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
)

CAUSAL = np.tri(4, dtype=bool)
MASKS: dict[str, npt.NDArray[Any] | None] = {
    "none": None,
    "causal": CAUSAL,
    "added": np.where(CAUSAL, 0.5, -np.inf),
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
def test_the_gradients_of_attention_are_those_of_differences(
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


def test_masks_and_heads_that_do_not_fit_are_refused() -> None:
    q = np.ones((1, 4, 4, 3))
    with pytest.raises(ValueError, match="mask: expected booleans, or floats to add, got int64"):
        attention(q, q, q, np.ones((4, 4), np.int64))
    with pytest.raises(ValueError, match="3 key heads do not divide 4 query heads"):
        attention(q, q[:, :, :3], q[:, :, :3])


# ---------- LoRA on the projections ----------


def test_targets_become_layers_and_the_rest_stays_what_it_was(rng: np.random.Generator) -> None:
    wq, wk, wv, wo = (rng.standard_normal((6, 6)) for _ in range(4))
    layers = apply_lora_to_attention(wq, wk, wv, wo, rank=2, alpha=4.0)
    assert list(layers) == ["q", "k", "v", "o"]
    assert layers["k"] is wk
    assert layers["o"] is wo
    assert adapted(layers["q"]).weight is wq
    assert adapted(layers["v"]).lora.scaling == 2.0
    assert (adapted(layers["q"]).lora.A != adapted(layers["v"]).lora.A).all()


def test_a_target_that_is_no_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown target 'w', expected one of q, k, v, o"):
        LoRAMultiHeadAttention(6, 2, target_modules=("q", "w"))


def test_untrained_lora_leaves_attention_as_it_is(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 4, 6))
    weights = {name: rng.standard_normal((6, 6)) for name in "qkvo"}
    plain = LoRAMultiHeadAttention(6, 2, target_modules=(), weights=weights)
    lora = LoRAMultiHeadAttention(6, 2, weights=weights)
    assert (lora.forward(x) == plain.forward(x)).all()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o"), ("o",), ()])
def test_the_modules_gradients_are_those_of_differences(
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
