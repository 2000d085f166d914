import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import LoRAManager

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


def test_the_active_adapter_is_the_one_that_is_used(rng: np.random.Generator) -> None:
    model, one, two = base(rng), adapter(rng, 2, 0.5, "q"), adapter(rng, 3, 2.0, "q", "v")
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    manager.add_adapter("two", two)
    assert manager.weights()["q"] is model["q"]
    manager.switch_adapter("one")
    np.testing.assert_allclose(manager.weights()["q"], model["q"] + delta(one, "q"), rtol=1e-12)
    assert manager.weights()["v"] is model["v"]
    manager.switch_adapter("two")
    np.testing.assert_allclose(manager.weights()["v"], model["v"] + delta(two, "v"), rtol=1e-12)
    manager.switch_adapter(None)
    assert manager.weights()["q"] is model["q"]


def test_merging_is_for_good_and_leaves_the_callers_weights_alone(rng: np.random.Generator) -> None:
    model, one = base(rng), adapter(rng, 2, 0.5, "q")
    before = model["q"].copy()
    manager = LoRAManager(model)
    manager.add_adapter("one", one)
    manager.switch_adapter("one")
    adapted = manager.weights()["q"]
    manager.merge_adapter("one")
    assert (manager.base_model["q"] == adapted).all()
    assert (manager.weights()["q"] == adapted).all()
    assert (manager.active, list(manager.adapters)) == (None, [])
    assert (model["q"] == before).all()


def test_combining_is_the_weighted_sum_of_the_updates(rng: np.random.Generator) -> None:
    one, two = adapter(rng, 2, 0.5, "q"), adapter(rng, 3, 2.0, "q", "v")
    manager = LoRAManager(base(rng))
    manager.add_adapter("one", one)
    manager.add_adapter("two", two)
    both = manager.combine_adapters(["one", "two"], [0.7, -0.3])
    expected = 0.7 * delta(one, "q") - 0.3 * delta(two, "q")
    np.testing.assert_allclose(delta(both, "q"), expected, rtol=1e-12)
    np.testing.assert_allclose(delta(both, "v"), -0.3 * delta(two, "v"), rtol=1e-12)
    assert both["q"][0].shape == (5, 5), "the ranks add up"
    manager.add_adapter("both", both)
    manager.switch_adapter("both")
    np.testing.assert_allclose(
        manager.weights()["q"], manager.base_model["q"] + expected, rtol=1e-12
    )


def test_names_and_weights_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    manager = LoRAManager(base(rng))
    manager.add_adapter("one", adapter(rng, 2, 0.5, "q"))
    for names, weights in ((["one"], [0.5, 0.5]), (["one", "one"], [1.0]), ([], [])):
        message = f"got {len(names)} names and {len(weights)} weights"
        with pytest.raises(ValueError, match=message):
            manager.combine_adapters(names, weights)
    for unknown in (
        lambda: manager.switch_adapter("oen"),
        lambda: manager.merge_adapter("oen"),
        lambda: manager.combine_adapters(["oen"], [1.0]),
    ):
        with pytest.raises(ValueError, match=r"unknown adapter 'oen', .* did you mean 'one'\?"):
            unknown()


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
