"""A line of code as the course chapter writes it, and what it gives, one test after the other."""

import types
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

from tinygrad_peft.arrays import AnyArray, Array
from tinygrad_peft.reference import (
    Adapter,
    LoRALayer,
    LoRALinear,
    LoRAManager,
    LoRAMultiHeadAttention,
    PrefixTuning,
    PromptTuning,
    QLoRALayer,
    VeRALayer,
    analyze_peft_efficiency,
    attention,
    compare_peft_methods,
    dequantize_4bit,
    quantize_to_4bit,
)

# ---------- random starts ----------


STARTS: dict[str, Callable[[], Array]] = {
    "LoRALayer": lambda: LoRALayer(5, 4).A,
    "LoRALinear": lambda: LoRALinear(np.ones((4, 5))).lora.A,
    "Adapter": lambda: Adapter(5, 3).W_up,
    "PrefixTuning": lambda: PrefixTuning(1, 2, 3).prefix,
    "PromptTuning": lambda: PromptTuning(5).prompt,
    "QLoRALayer": lambda: QLoRALayer(np.ones((4, 5), np.uint8), 1.0, 0.0).lora.A,
    "VeRALayer": lambda: VeRALayer(5, 4, 3).A,
    "attention": lambda: cast("Array", LoRAMultiHeadAttention(6, 2).projections["k"]),
}


@pytest.mark.parametrize("name", STARTS)
def test_objects_differ_and_the_seed_decides(name: str, reseed: Callable[[], None]) -> None:
    draw = STARTS[name]
    first, second = draw(), draw()
    assert (first != second).any()
    reseed()
    assert (draw() == first).all()
    assert (draw() == second).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: LoRALayer(400, 4, 100).A,
        lambda: PrefixTuning(10, 8, 50).prefix,
        lambda: PromptTuning(400, 100).prompt,
    ],
    ids=["LoRALayer", "PrefixTuning", "PromptTuning"],
)
def test_starts_have_the_chapters_deviation(draw: Callable[[], Array]) -> None:
    start = draw()
    assert np.std(start) == pytest.approx(0.01, rel=0.03)
    assert np.mean(start) == pytest.approx(0, abs=0.0003)


def test_two_layers_on_one_weight_learn_what_one_of_their_rank_cannot(
    rng: np.random.Generator,
) -> None:
    W, x = rng.standard_normal((16, 16)), rng.standard_normal((64, 16))
    wanted = rng.standard_normal((16, 8)) @ rng.standard_normal((8, 16)) / 4
    first, second = LoRALayer(16, 16, rank=4), LoRALayer(16, 16, rank=4)
    off = np.ones_like(x)
    for _ in range(2000):
        off = first.forward(x, W) + second.forward(x, 0 * W) - x @ (W + wanted).T
        for lora in (first, second):
            lora.backward(off / len(x))
            lora.A -= 0.03 * lora.A_grad
            lora.B -= 0.03 * lora.B_grad
    update = first.merge(0 * W) + second.merge(0 * W)
    assert np.linalg.matrix_rank(update, tol=1e-3) == 8
    assert np.mean(off**2) < 1e-6


# ---------- masks ----------

CAUSAL = np.tri(4)


@pytest.mark.parametrize(
    "mask",
    [
        np.tril(np.ones((4, 4))),
        np.tril(np.ones((4, 4), np.int64)),
        np.tril(np.ones((4, 4), bool)),
        np.where(np.triu(np.ones((4, 4), dtype=bool), k=1), float("-inf"), 0.0),
        np.triu(np.full((4, 4), -1e9), k=1),
    ],
    ids=["floats", "integers", "booleans", "-inf", "-1e9"],
)
def test_no_form_of_a_causal_mask_lets_attention_see_the_future(
    rng: np.random.Generator, mask: AnyArray
) -> None:
    q, x = rng.standard_normal((1, 4, 2, 3)), rng.standard_normal((1, 4, 6))
    _, p = attention(q, q, q, mask)
    assert (p[..., CAUSAL == 0] == 0).all()
    layer, later = LoRAMultiHeadAttention(6, 2), x.copy()
    later[:, 2:] = 7
    assert (layer.forward(x, mask)[:, :2] == layer.forward(later, mask)[:, :2]).all()
    prefix, future = PrefixTuning(1, 2, 3), q.copy()
    future[:, 2:] = 7
    seen = prefix.forward(0, q, q, q, mask)[:, :2]
    assert (seen == prefix.forward(0, q, future, future, mask)[:, :2]).all()


def test_tokens_may_come_without_a_batch() -> None:
    x = np.ones((4, 6))
    assert LoRAMultiHeadAttention(6, 2).forward(x).shape == (4, 6)
    assert LoRALayer(6, 5).forward(x, np.ones((5, 6))).shape == (4, 5)
    assert Adapter(6).forward(x).shape == (4, 6)
    assert PromptTuning(6).forward(x).shape == (24, 6)
    q = np.ones((4, 2, 3))
    assert PrefixTuning(1, 2, 3).forward(0, q, q, q).shape == (4, 2, 3)


# ---------- the manager ----------


def managed(rng: np.random.Generator) -> tuple[dict[str, Array], LoRAManager[dict[str, Array]]]:
    """A base of one weight, and its manager with the adapters "one" and "two"."""
    base: dict[str, Array] = {"q": rng.standard_normal((4, 5))}
    manager = LoRAManager(base)
    for name in ("one", "two"):
        A, B = rng.standard_normal((2, 5)), rng.standard_normal((4, 2))
        manager.add_adapter(name, {"q": (A, B)})
    return base, manager


def test_combine_adapters_stores_the_sum_and_returns_none(rng: np.random.Generator) -> None:
    base, manager = managed(rng)
    one, two = (manager.adapters[name]["q"] for name in ("one", "two"))
    combined = manager.combine_adapters(["one", "two"], [0.5, 0.5])  # type: ignore[func-returns-value]
    assert combined is None
    expected = base["q"] + 0.5 * one.B @ one.A + 0.5 * two.B @ two.A
    np.testing.assert_allclose(manager.weights()["q"], expected, rtol=1e-12)


def test_merge_adapter_changes_the_callers_base(rng: np.random.Generator) -> None:
    base, manager = managed(rng)
    expected = manager.adapters["one"]["q"].merge(base["q"])
    manager.merge_adapter("one")
    assert (base["q"] == expected).all()


def test_switch_adapter_changes_the_output(rng: np.random.Generator) -> None:
    base, manager = managed(rng)
    x, two = rng.standard_normal((3, 5)), manager.adapters["two"]["q"]
    manager.switch_adapter("two")
    assert (manager.forward("q", x) == two.forward(x, base["q"])).all()


def test_a_manager_takes_a_model_of_linears_or_an_object(rng: np.random.Generator) -> None:
    W, A, B = (rng.standard_normal(shape) for shape in ((4, 5), (2, 5), (4, 2)))
    linear, x = LoRALinear(W.copy()), rng.standard_normal((3, 5))
    for model in ({"q": linear}, types.SimpleNamespace(q=linear), types.SimpleNamespace(q=W)):
        manager = LoRAManager[object](model)
        manager.add_adapter("one", {"q": {"A": A, "B": B}})
        manager.switch_adapter("one")
        np.testing.assert_allclose(manager.forward("q", x), x @ (W + B @ A).T, rtol=1e-10)


def test_a_value_that_is_not_an_adapter_is_refused_in_one_sentence() -> None:
    manager = LoRAManager({"q": np.ones((4, 5))})
    forms = r'\(A, B\), \(A, B, scaling\), {"A": A, "B": B} or a LoRALayer'
    with pytest.raises(ValueError, match=f"^adapter 'one': q: expected {forms}, got int$"):
        manager.add_adapter("one", {"q": 3})  # type: ignore[dict-item]


# ---------- efficiency ----------


def test_memory_estimate_is_the_saving_against_full_fine_tuning() -> None:
    model = {"d_model": 4096, "n_layers": 32, "n_heads": 32}
    settings = {"rank": 8, "alpha": 16, "target_modules": ["q", "v"]}
    found = analyze_peft_efficiency(model, "lora", settings)
    assert found == {
        "trainable_params": 4_194_304,
        "total_params": 2_147_483_648,
        "counted": "attention projections",
        "efficiency_ratio": 1 / 512,
        "memory_estimate": 34_359_738_368 - 8_657_043_456,
        "memory_needed": 8_657_043_456,
        "memory_full": 34_359_738_368,
    }


def test_a_comparison_describes_its_methods_under_the_chapters_names() -> None:
    assert {name: count["description"] for name, count in compare_peft_methods().items()} == {
        "full_fine_tuning": "Update all attention weights",
        "lora": "LoRA rank=8 on Q,V",
        "adapters": "Bottleneck=64",
        "prefix_tuning": "10 prefix tokens",
        "prompt_tuning": "20 soft prompts",
    }


# ---------- attributes ----------


def test_a_subclass_with_a_forward_of_its_own_inherits_backward(rng: np.random.Generator) -> None:
    class DroppedLoRA(LoRALayer):
        """Half of the entries of x never reach the low-rank path."""

        def forward(self, x: Array, W: Array) -> Array:
            kept = x * keep
            self.cache = {"x": kept, "W": W, "Ax": kept @ self.A.T}
            return x @ W.T + self.scaling * self.cache["Ax"] @ self.B.T

    keep = np.arange(5) % 2.0
    x, W, g = (rng.standard_normal(shape) for shape in ((3, 5), (4, 5), (3, 4)))
    lora = DroppedLoRA(5, 4, rank=2)
    lora.B = rng.standard_normal((4, 2))
    lora.forward(x, W)
    lora.backward(g)
    np.testing.assert_allclose(lora.B_grad, 8 * g.T @ ((x * keep) @ lora.A.T), rtol=1e-12)
    np.testing.assert_allclose(lora.A_grad, 8 * (g @ lora.B).T @ (x * keep), rtol=1e-12)


def test_an_adapter_with_a_forward_of_its_own_inherits_backward(rng: np.random.Generator) -> None:
    class ScaledAdapter(Adapter):
        """The activation is doubled."""

        def forward(self, x: Array) -> Array:
            down = x @ self.W_down
            activated = 2 * np.maximum(down, 0)
            self.cache = {"x": x, "down": down, "activated": activated}
            return x + activated @ self.W_up

    adapter, x, g = ScaledAdapter(5, 3), rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    adapter.forward(x)
    adapter.backward(g)
    expected = (2 * np.maximum(x @ adapter.W_down, 0)).T @ g
    np.testing.assert_allclose(adapter.W_up_grad, expected, rtol=1e-12)


def test_the_caches_have_the_chapters_keys() -> None:
    lora, adapter, x = LoRALayer(5, 4), Adapter(5, 3), np.ones((2, 5))
    lora.forward(x, np.ones((4, 5)))
    adapter.forward(x)
    assert list(lora.cache) == ["x", "W", "Ax"]
    assert list(adapter.cache) == ["x", "down", "activated"]


def test_sizes_can_be_read_off_the_objects() -> None:
    assert LoRALayer(5, 4, rank=3).rank == 3
    linear = LoRALinear(np.ones((4, 5)))
    assert (linear.in_features, linear.out_features) == (5, 4)
    prefix = PrefixTuning(3, 2, 4)
    assert (prefix.num_layers, prefix.num_heads, prefix.d_head) == (3, 2, 4)
    assert QLoRALayer(np.ones((4, 5), np.uint8), 1.0, 0.0, rank=3).rank == 3


def test_embeddings_go_by_either_of_the_chapters_names(rng: np.random.Generator) -> None:
    prompt, x = PromptTuning(5), rng.standard_normal((2, 3, 5))
    by_place = prompt.forward(x)
    assert (prompt.forward(input_embeds=x) == by_place).all()
    assert (prompt.forward(input_embeddings=x) == by_place).all()


def test_a_bottleneck_has_either_name_but_not_both() -> None:
    assert Adapter(5, bottleneck=3).bottleneck_dim == Adapter(5, bottleneck_dim=3).bottleneck_dim
    with pytest.raises(ValueError, match="bottleneck=3 and bottleneck_dim=4"):
        Adapter(5, bottleneck_dim=4, bottleneck=3)


def test_the_zero_point_is_a_float_and_the_code_of_zero() -> None:
    codes, scale, zero_point = quantize_to_4bit(np.array([[-1.5, 0.0, 1.5]]))
    assert isinstance(zero_point, float)
    assert codes[0, 1] == zero_point
    offset = -scale * zero_point
    np.testing.assert_allclose(
        scale * codes + offset, dequantize_4bit(codes, scale, zero_point), rtol=1e-12
    )
