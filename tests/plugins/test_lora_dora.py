import tracemalloc

import numpy as np
import pytest

from tests.peft.small import FAMILIES, LLAMA, logits, lora_host, shake, small
from tests.plugins.doubled import Doubled
from tinygrad_peft.arrays import Array
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import Affine, Init, Linear, Parameter
from tinygrad_peft.peft import get_peft_model
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_lora import DoraLinear, LoraConfig, LoraLinear

CONFIG = LoraConfig(r=2, lora_alpha=3, use_dora=True)
X = np.random.default_rng(0).normal(size=(3, 4, 5))


def frozen(*, bias: bool = True, half: bool = False) -> Linear:
    rng = np.random.default_rng(1)
    size = 0.5 if half else 1.0
    weight = Parameter(size * rng.normal(size=(4, 5)), requires_grad=False)
    shift = Parameter(size * rng.normal(size=4), requires_grad=False)
    return Linear.of(weight, shift if bias else None)


def trained(base: Affine | None = None, config: LoraConfig = CONFIG) -> DoraLinear:
    """Return DoRA on a layer of 5 to 4, in float64, with B and the magnitudes moved."""
    made = DoraLinear(frozen() if base is None else base, config, "layer", Init(3, np.float64))
    rng = np.random.default_rng(2)
    made.lora_B.weight.data = rng.normal(size=(4, 2))
    made.lora_magnitude_vector.data = made.lora_magnitude_vector.data + rng.normal(size=4)
    return made


def adapted_weight(made: DoraLinear) -> Array:
    """m ⊙ V / ‖V‖ per row, with V = W + s B A built whole."""
    direction = frozen().weight.data + 1.5 * (made.lora_B.weight.data @ made.lora_A.weight.data)
    norms = np.linalg.norm(direction, axis=1, keepdims=True)
    return np.asarray(made.lora_magnitude_vector.data[:, None] * direction / norms)


def bias() -> Array:
    shift = frozen().bias
    assert shift is not None
    return shift.data


BASES = {"a plain layer": frozen(), "any affine layer": Doubled(frozen(half=True))}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_layer_is_its_formula(base: Affine) -> None:
    made = trained(base)
    np.testing.assert_allclose(made(Tensor(X)).data, X @ adapted_weight(made).T + bias())
    np.testing.assert_allclose(
        made(Tensor(X[0, 0])).data, X[0, 0] @ adapted_weight(made).T + bias()
    )


def test_a_layer_without_a_bias_stays_without() -> None:
    made = trained(frozen(bias=False))
    np.testing.assert_allclose(made(Tensor(X)).data, X @ adapted_weight(made).T)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradients_are_the_differences_with_the_norms_held_constant(
    base: Affine, dropout: float
) -> None:
    made = trained(base, LoraConfig(r=2, lora_alpha=3, use_dora=True, lora_dropout=dropout))
    norms = made.norms()
    made.norms = lambda: norms  # type: ignore[method-assign]
    inputs = [Tensor(X, requires_grad=True), *made.parameters()]
    assert sum(t.requires_grad for t in inputs) == 4

    def function(x: Tensor, *_: Tensor) -> Tensor:
        made.dropout.rng = np.random.default_rng(7)
        return made(x)

    assert check_gradients(function, inputs) < 1e-6


def test_dropout_spares_the_bases_own_part() -> None:
    made = trained(config=LoraConfig(r=2, lora_alpha=3, use_dora=True, lora_dropout=0.4))
    made.dropout.rng = np.random.default_rng(7)
    keep = made.dropout.keep(X.shape)
    assert keep is not None
    dropped = X * keep / 0.6
    made.dropout.rng = np.random.default_rng(7)
    expected = (X - dropped) @ frozen().weight.data.T + dropped @ adapted_weight(made).T + bias()
    np.testing.assert_allclose(made(Tensor(X)).data, expected)
    made.eval()
    np.testing.assert_allclose(made(Tensor(X)).data, X @ adapted_weight(made).T + bias())


def test_training_begins_at_the_base() -> None:
    made = DoraLinear(frozen(), CONFIG, "layer", Init(3, np.float64))
    np.testing.assert_allclose(made(Tensor(X)).data, frozen()(Tensor(X)).data, rtol=1e-12)
    np.testing.assert_allclose(
        made.lora_magnitude_vector.data, np.linalg.norm(frozen().weight.data, axis=1)
    )


def test_a_merged_layer_is_plain_with_the_same_output() -> None:
    made = trained()
    merged = made.merge()
    assert isinstance(merged, Linear)
    np.testing.assert_allclose(merged(Tensor(X)).data, made(Tensor(X)).data)
    np.testing.assert_array_equal(frozen().weight.data, made.base_layer.weight.data)  # type: ignore[attr-defined]
    assert trained(Doubled(frozen())).merge() is None


# ---------- the norms ----------


def test_norms_follow_in_place_updates_of_a_and_b() -> None:
    made = trained()
    before = made.norms().copy()
    made.lora_A.weight.data[...] *= 2
    assert np.abs(made.norms() - before).min() > 1e-3
    np.testing.assert_allclose(made(Tensor(X)).data, X @ adapted_weight(made).T + bias())
    made.lora_B.weight.data[...] *= 2
    np.testing.assert_allclose(made(Tensor(X)).data, X @ adapted_weight(made).T + bias())


def test_norms_follow_new_weights_of_the_base() -> None:
    base = frozen()
    made = trained(base)
    made.norms()
    base.weight.data = 3 * base.weight.data
    assert made.norms() == pytest.approx(
        np.linalg.norm(base.weight.data + made.delta(), axis=1), rel=1e-12
    )


def test_norms_follow_a_lora_below() -> None:
    inner = LoraLinear(frozen(), LoraConfig(r=1, lora_dropout=0.5), "layer", Init(5, np.float64))
    made = trained(inner)
    inner.eval()
    for value in (0.5, 1.0):
        inner.lora_B.weight.data[...] = value
        total = frozen().weight.data + inner.delta() + made.delta()
        np.testing.assert_allclose(made.norms(), np.linalg.norm(total, axis=1))


def test_norms_are_computed_without_dropout() -> None:
    inner = LoraLinear(frozen(), LoraConfig(r=1, lora_dropout=0.5), "layer", Init(5, np.float64))
    inner.lora_B.weight.data[...] = 1.0
    state = inner.dropout.rng.bit_generator.state
    made = trained(inner)
    total = frozen().weight.data + inner.delta() + made.delta()
    np.testing.assert_allclose(made.norms(), np.linalg.norm(total, axis=1))
    assert inner.training
    assert inner.dropout.rng.bit_generator.state == state


def test_the_update_is_never_built() -> None:
    size = 1200
    base = Linear(size, size, bias=False)
    base.freeze()
    made = DoraLinear(base, CONFIG, "layer", Init())
    x = Tensor(np.zeros((1, size), np.float32))
    tracemalloc.start()
    try:
        made.lora_A.weight.data[0, 0] += 1
        made(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size * size * 4 / 10


# ---------- in a model ----------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_starts_as_the_base_and_merges(family: str) -> None:
    model = small(FAMILIES[family])
    before = logits(model)
    peft = get_peft_model(
        model, LoraConfig(r=2, use_dora=True, target_modules="all-linear"), host=lora_host()
    )
    np.testing.assert_array_equal(logits(peft), before)
    shake(peft)
    expected = logits(peft)
    assert np.abs(expected - before).max() > 1e-2
    np.testing.assert_allclose(logits(peft.merge_and_unload()), expected, atol=2e-6)


def test_two_doras_on_one_layer_are_merged_in_the_order_of_the_recipe() -> None:
    steps = [
        LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
        LoraConfig(r=3, use_dora=True, target_modules=["q_proj"]),
    ]
    outputs = []
    for recipe in (steps, steps[::-1]):
        peft = get_peft_model(small(LLAMA, np.float64), recipe, host=lora_host())
        shake(peft)
        expected = logits(peft)
        with no_grad():
            np.testing.assert_allclose(logits(peft.merge_and_unload()), expected, rtol=1e-9)
        outputs.append(expected)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4
