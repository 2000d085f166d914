from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import LoRALayer, LoRALinear, LoRAManager

Adapter = dict[str, tuple[Array, Array, float]]


def adapter(rng: np.random.Generator, rank: int, scaling: float, *names: str) -> Adapter:
    shapes = {"q": (4, 5), "v": (3, 5)}
    return {
        name: (
            rng.standard_normal((rank, shapes[name][1])),
            rng.standard_normal((shapes[name][0], rank)),
            scaling,
        )
        for name in names
    }


def base(rng: np.random.Generator) -> dict[str, Array]:
    return {"q": rng.standard_normal((4, 5)), "v": rng.standard_normal((3, 5))}


def delta(adapter: Adapter, name: str) -> Array:
    A, B, scaling = adapter[name]
    return scaling * B @ A


def assert_close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


# ---------- one adapter at a time ----------


def test_what_the_manager_computes_follows_the_active_adapter(rng: np.random.Generator) -> None:
    model, one, two = base(rng), adapter(rng, 2, 0.5, "q"), adapter(rng, 3, 2.0, "q", "v")
    x = rng.standard_normal((2, 3, 5))
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    manager.add_adapter("two", two)
    assert manager.weights()["q"] is model["q"], "no adapter is active yet"
    expected: dict[str | None, dict[str, Array]] = {
        "one": {"q": model["q"] + delta(one, "q"), "v": model["v"]},
        "two": {"q": model["q"] + delta(two, "q"), "v": model["v"] + delta(two, "v")},
        None: model,
    }
    for name in ("one", "two", None, "one"):
        manager.switch_adapter(name)
        assert manager.active == name
        for weight, W in expected[name].items():
            assert_close(manager.weights()[weight], W)
            assert_close(manager.forward(weight, x), x @ W.T)


@dataclass
class Projections:
    """A model as a course writes one: arrays, layers and settings side by side."""

    q: Array
    v: LoRALinear
    n_heads: int = 2
    name: str = "tiny"


def test_a_layer_of_the_base_computes_with_the_active_adapter(rng: np.random.Generator) -> None:
    arrays, x = base(rng), rng.standard_normal((3, 5))
    bias = rng.standard_normal(3)
    model = Projections(arrays["q"], LoRALinear(arrays["v"], bias, lora_rank=2))
    own = model.v.lora
    own.B = rng.standard_normal((3, 2))
    one, two = adapter(rng, 2, 0.5, "q", "v"), adapter(rng, 2, 0.5, "q")
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    manager.add_adapter("two", two)
    for name, W in (
        ("one", arrays["v"] + delta(one, "v")),
        ("two", own.merge(arrays["v"])),
        (None, own.merge(arrays["v"])),
    ):
        manager.switch_adapter(name)
        assert_close(model.v.forward(x), x @ W.T + bias)
        assert_close(manager.forward("v", x), x @ W.T + bias)
        assert_close(manager.weights()["v"], W)
    assert model.v.lora is own


def test_the_active_adapter_is_trained_in_place(rng: np.random.Generator) -> None:
    trained = LoRALayer(5, 3, rank=2, rng=rng)
    linear, x = LoRALinear(rng.standard_normal((3, 5))), rng.standard_normal((4, 5))
    manager = LoRAManager({"v": linear})
    manager.add_adapter("one", {"v": trained})
    manager.switch_adapter("one")
    linear.backward(linear.forward(x))
    linear.lora.B -= 0.1 * linear.lora.B_grad
    assert trained.B.any()
    assert_close(manager.weights()["v"], linear.weight + 8 * trained.B @ trained.A)


@pytest.mark.parametrize("form", ["pair", "triple", "list", "mapping", "scaled mapping", "layer"])
def test_an_adapter_may_come_in_any_form(rng: np.random.Generator, form: str) -> None:
    W, A, B = (rng.standard_normal(shape) for shape in ((4, 5), (2, 5), (4, 2)))
    scaling = 1.0 if form in {"pair", "mapping", "list"} else 0.5
    manager = LoRAManager({"q": W})
    match form:
        case "pair":
            manager.add_adapter("one", {"q": (A, B)})
        case "list":
            manager.add_adapter("one", {"q": [A, B]})  # type: ignore[dict-item]
        case "triple":
            manager.add_adapter("one", {"q": (A, B, 0.5)})
        case "mapping":
            manager.add_adapter("one", {"q": {"A": A, "B": B}})
        case "scaled mapping":
            manager.add_adapter("one", {"q": {"A": A, "B": B, "scaling": 0.5}})
        case "layer":
            manager.add_adapter("one", {"q": LoRALayer.of(A, B, 0.5)})
    manager.switch_adapter("one")
    assert_close(manager.weights()["q"], W + scaling * B @ A)


# ---------- merging ----------


def test_merging_changes_the_callers_own_arrays(rng: np.random.Generator) -> None:
    model, one = base(rng), adapter(rng, 2, 0.5, "q")
    q, before = model["q"], {name: W.copy() for name, W in model.items()}
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    manager.switch_adapter("one")
    assert manager.merge_adapter("one") is None  # type: ignore[func-returns-value]
    assert model["q"] is q
    assert_close(q, before["q"] + delta(one, "q"))
    assert (model["v"] == before["v"]).all()
    assert (manager.weights()["q"] == q).all()
    assert (manager.active, list(manager.adapters)) == (None, [])


def test_merging_an_idle_adapter_leaves_the_active_one_active(rng: np.random.Generator) -> None:
    model, one, two = base(rng), adapter(rng, 2, 0.5, "q"), adapter(rng, 3, 2.0, "q")
    expected = model["q"] + delta(one, "q") + delta(two, "q")
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    manager.add_adapter("two", two)
    manager.switch_adapter("two")
    manager.merge_adapter("one")
    assert manager.active == "two"
    assert_close(manager.weights()["q"], expected)


def test_merging_changes_a_layers_weight_and_an_objects_array(rng: np.random.Generator) -> None:
    arrays, one, x = base(rng), adapter(rng, 2, 0.5, "q", "v"), rng.standard_normal((3, 5))
    expected = {name: W + delta(one, name) for name, W in arrays.items()}
    model = Projections(arrays["q"], LoRALinear(arrays["v"]))
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    manager.switch_adapter("one")
    manager.merge_adapter("one")
    assert_close(model.q, expected["q"])
    assert_close(model.v.weight, expected["v"])
    assert_close(model.v.forward(x), x @ expected["v"].T)


def test_float32_stays_float32_when_merged(rng: np.random.Generator) -> None:
    model = {name: W.astype(np.float32) for name, W in base(rng).items()}
    manager = LoRAManager(model)
    manager.add_adapter("one", adapter(rng, 2, 0.5, "q"))
    manager.merge_adapter("one")
    assert model["q"].dtype == np.float32


def test_arrays_that_cannot_be_merged_into_are_refused_before_any_change(
    rng: np.random.Generator,
) -> None:
    fused = rng.standard_normal((8, 5))
    model = {"q": fused[:4], "v": fused[3:6], "o": rng.standard_normal((4, 5))}
    model["o"].flags.writeable = False
    before = fused.copy()
    A, B = rng.standard_normal((2, 5)), rng.standard_normal((4, 2))
    manager = LoRAManager(model)
    manager.add_adapter("one", {"q": (A, B), "o": (A, B)})
    message = "expected an own array to write to, o is read-only; q shares its memory with v"
    with pytest.raises(ValueError, match=f"base_model: {message}"):
        manager.merge_adapter("one")
    assert (fused == before).all()
    assert "one" in manager.adapters


# ---------- combining ----------


def test_combining_makes_the_weighted_sum_the_active_adapter(rng: np.random.Generator) -> None:
    model, one, two = base(rng), adapter(rng, 2, 0.5, "q"), adapter(rng, 3, 2.0, "q", "v")
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    manager.add_adapter("two", two)
    result = manager.combine_adapters(  # type: ignore[func-returns-value]
        ["one", "two"], [0.7, -0.3], name="both"
    )
    assert result is None
    assert manager.active == "both"
    assert manager.adapters["both"]["q"].rank == 5, "the ranks add up"
    summed = {"q": 0.7 * delta(one, "q") - 0.3 * delta(two, "q"), "v": -0.3 * delta(two, "v")}
    for name, update in summed.items():
        assert_close(manager.weights()[name], model[name] + update)


def test_a_sum_without_a_name_takes_the_place_of_the_last(rng: np.random.Generator) -> None:
    model, one = base(rng), adapter(rng, 2, 0.5, "q")
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    for weight in (2.0, 3.0):
        manager.combine_adapters(["one"], [weight])
        assert (manager.active, list(manager.adapters)) == ("combined", ["one", "combined"])
        assert_close(manager.weights()["q"], model["q"] + weight * delta(one, "q"))


# ---------- errors ----------


def test_names_and_weights_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    manager = LoRAManager(base(rng))
    manager.add_adapter("one", adapter(rng, 2, 0.5, "q"))
    for names, weights in ((["one"], [0.5, 0.5]), (["one", "one"], [1.0]), ([], [])):
        message = f"got {len(names)} names and {len(weights)} weights"
        with pytest.raises(ValueError, match=message):
            manager.combine_adapters(names, weights)
    attempts: list[Callable[[], None]] = [
        lambda: manager.switch_adapter("oen"),
        lambda: manager.merge_adapter("oen"),
        lambda: manager.combine_adapters(["oen"], [1.0]),
    ]
    for unknown in attempts:
        with pytest.raises(ValueError, match=r"unknown adapter 'oen', .* did you mean 'one'\?"):
            unknown()
    with pytest.raises(
        ValueError, match=r"unknown adapter 'oen'.*0 weights; the name 'one' is tak"
    ):
        manager.combine_adapters(["oen"], [], name="one")
    for weight in (float("nan"), "x", None):
        with pytest.raises(ValueError, match=f"weights: expected finite numbers, got {weight!r}"):
            manager.combine_adapters(["one"], [weight])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="name: expected a str, got NoneType"):
        manager.add_adapter(None, adapter(rng, 2, 0.5, "q"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown weight 'k', expected one of q, v"):
        manager.forward("k", np.ones((3, 5)))


def test_an_adapter_of_another_model_is_refused_with_every_mismatch(
    rng: np.random.Generator,
) -> None:
    manager = LoRAManager(base(rng))
    manager.add_adapter("one", adapter(rng, 2, 0.5, "q"))
    wrong = {
        "q": (np.ones((2, 6)), np.ones((4, 2)), 1.0),
        "v": (np.ones((2, 5)), np.ones((3, 3)), 1.0),
        "k": (np.ones((2, 5)), np.ones((3, 2)), 1.0),
    }
    with pytest.raises(ValueError, match="adapter 'one': the name 'one' is taken") as caught:
        manager.add_adapter("one", wrong)
    message = str(caught.value)
    assert "q: expected A (r, 5) and B (4, r), got (2, 6) and (4, 2)" in message
    assert "v: expected A (r, 5) and B (3, r), got (2, 5) and (3, 3)" in message
    assert "unknown weight 'k', expected one of q, v" in message


FORMS = '(A, B), (A, B, scaling), {"A": A, "B": B} or a LoRALayer'
MATRIX = "an array of shape (2, 5) and dtype float64"


@pytest.mark.parametrize(
    ("update", "got"),
    [
        (3, "int"),
        (np.ones((2, 5)), MATRIX),
        ((np.ones((2, 5)),), f"({MATRIX})"),
        ((np.ones((2, 5)), "B"), f"({MATRIX}, str)"),
        ((np.ones((2, 5)), np.ones((4, 2)), "x"), "(an array of"),
        ({"A": np.ones((2, 5))}, f"{{'A': {MATRIX}}}"),
        ({"A": np.ones((2, 5)), "B": np.ones((4, 2), int)}, "dtype int64}"),
        ({"A": np.ones((2, 5)), "B": np.ones((4, 2)), "rank": 2}, "'rank': int}"),
    ],
)
def test_an_adapter_in_another_form_is_refused_in_one_sentence(update: object, got: str) -> None:
    manager = LoRAManager({"q": np.ones((4, 5))})
    with pytest.raises(ValueError, match="adapter 'one': q: expected") as caught:
        manager.add_adapter("one", {"q": update})  # type: ignore[dict-item]
    message = str(caught.value)
    assert message.startswith(f"adapter 'one': q: expected {FORMS}, got ")
    assert got in message
    assert "\n" not in message


def test_matrices_that_name_no_weight_are_refused() -> None:
    manager = LoRAManager({"q": np.ones((4, 5))})
    pair = np.ones((2, 5)), np.ones((4, 2))
    with pytest.raises(ValueError, match=r"expected a mapping from weights to .*, got \(an array"):
        manager.add_adapter("one", pair)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [3, {}, {"q": "text"}, {"q": np.ones(4)}, {"q": np.ones(4, int)}])
def test_a_base_model_without_weights_is_refused(model: object) -> None:
    kind = type(model).__name__
    with pytest.raises(ValueError, match=f"base_model: expected .* got {kind} without any"):
        LoRAManager(model)
