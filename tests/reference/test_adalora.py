import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Init, Linear, Parameter
from tinygrad_peft.reference import (
    AdaLoRALayer,
    Importance,
    cubic_budget,
    most_important,
    orthogonality,
    triplet_scores,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_adalora import AdaLoraConfig, AdaLoraLinear, Budget
from tinygrad_peft_adalora import orthogonality as plugin_orthogonality

SHAPES = pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])


def layer(rng: np.random.Generator) -> AdaLoRALayer:
    made = AdaLoRALayer(5, 4, 3, alpha=6.0, rng=rng)
    for array in (made.A, made.E, made.B):
        array[...] = rng.standard_normal(array.shape)
    return made


def test_it_starts_as_the_weight_that_it_is_on(rng: np.random.Generator) -> None:
    W, x = rng.standard_normal((4, 5)), rng.standard_normal((3, 5))
    made = AdaLoRALayer(5, 4, rank=2, rng=rng)
    assert made.num_parameters() == 2 * (5 + 4 + 1)
    assert made.scaling == pytest.approx(4.0, rel=1e-5)
    assert (made.forward(x, W) == x @ W.T).all()
    assert 0 < np.abs(made.A).max() < 0.1


@SHAPES
def test_the_gradients_are_those_of_differences(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    made, x, W = layer(rng), rng.standard_normal(shape), rng.standard_normal((4, 5))
    g = rng.standard_normal((*shape[:-1], 4))

    def forward() -> Array:
        return made.forward(x, W)

    forward()
    grad_x = made.backward(g)
    pairs = [(x, grad_x), (made.A, made.A_grad), (made.E, made.E_grad), (made.B, made.B_grad)]
    for array, grad in pairs:
        assert_gradient(forward, g, array, grad)


@SHAPES
def test_a_merged_weight_gives_the_same_output(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    made, x, W = layer(rng), rng.standard_normal(shape), rng.standard_normal((4, 5))
    np.testing.assert_allclose(x @ made.merge(W).T, made.forward(x, W), rtol=1e-10, atol=1e-12)


def test_the_penalty_has_the_gradient_of_differences(rng: np.random.Generator) -> None:
    A = rng.standard_normal((3, 5))

    def forward() -> Array:
        return np.asarray(orthogonality(A)[0])

    assert_gradient(forward, np.ones(()), A, orthogonality(A)[1])


def test_the_penalty_of_orthonormal_rows_is_zero_and_so_is_its_gradient() -> None:
    value, grad = orthogonality(np.eye(3, 5))
    assert value == 0
    assert not grad.any()


def test_importance_is_the_papers_averages() -> None:
    importance = Importance((2,), beta1=0.5, beta2=0.75)
    importance.update(np.array([1.0, -2.0]), np.array([4.0, 0.0]))
    np.testing.assert_array_equal(importance.sensitivity, [2, 0])
    np.testing.assert_array_equal(importance.uncertainty, [0.5, 0])  # a quarter of |4 - 2|
    importance.update(np.array([1.0, -2.0]), np.array([-2.0, 1.0]))
    np.testing.assert_array_equal(importance.sensitivity, [2, 1])
    np.testing.assert_array_equal(importance.uncertainty, [0.375, 0.25])
    np.testing.assert_array_equal(importance.score(), [0.75, 0.25])


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_factors_that_average_nothing_are_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Importance((2,), beta2=beta)


def test_a_triplets_score_is_its_values_and_the_means_of_its_vectors() -> None:
    A, E, B = np.array([[1.0, 3.0], [0, 0]]), np.array([[5.0], [1]]), np.array([[2.0, 4], [0, 0]])
    np.testing.assert_array_equal(triplet_scores(A, E, B), [5 + 2 + 1, 1 + 0 + 2])


def test_the_budget_goes_to_the_highest_scores_of_all_layers() -> None:
    scores = [np.array([3.0, 9.0]), np.array([5.0, 1.0, 7.0])]
    found = most_important(scores, 3)
    assert [mask.tolist() for mask in found] == [[False, True], [True, False, True]]
    assert all(mask.all() for mask in most_important(scores, 5))
    assert not any(mask.any() for mask in most_important(scores, 0))


def test_of_equal_scores_none_is_kept() -> None:
    (mask,) = most_important([np.array([2.0, 2.0, 3.0])], 2)
    assert mask.tolist() == [False, False, True]


def test_the_budget_falls_as_a_cubic_between_the_two_phases() -> None:
    found = [cubic_budget(t, 100, 20, tinit=2, tfinal=2, total=8) for t in range(1, 9)]
    assert found == [100, 100, int(20 + 80 * 0.75**3), 30, int(20 + 80 / 64), 20, 20, 20]


# ---------- the plugin ----------

TRIPLET = ("lora_A", "lora_E", "lora_B")


def plugin_layer(dtype: type[np.floating]) -> tuple[AdaLoraLinear, AdaLoRALayer]:
    """A layer of the plugin with random weights, and the reference's with the same."""
    init = Init(0, dtype)
    base = Linear.of(Parameter(init.normal(4, 5, std=1), requires_grad=False))
    config = AdaLoraConfig(init_r=3, target_r=2, lora_alpha=6.0)
    plugin, made = AdaLoraLinear(base, Budget(config), "", init), AdaLoRALayer(5, 4, 3, alpha=6.0)
    for parameter in plugin.triplets.values():
        parameter.data = init.normal(*parameter.shape, std=1)
    made.A, made.E, made.B = (plugin.triplets[name].data for name in TRIPLET)
    return plugin, made


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_the_plugins_layer_and_penalty_agree(
    rng: np.random.Generator, dtype: type[np.floating], tolerance: float
) -> None:
    plugin, made = plugin_layer(dtype)
    assert isinstance(plugin.base_layer, Linear)
    x, g = (rng.standard_normal((2, 3, n)).astype(dtype) for n in (5, 4))
    tensor, rows = Tensor(x, requires_grad=True), Tensor(made.A.copy(), requires_grad=True)
    y, penalty = plugin(tensor), plugin_orthogonality(rows)
    y.backward(g)
    penalty.backward()
    expected = made.forward(x, plugin.base_layer.weight.data), made.backward(g)
    value, grad = orthogonality(made.A)
    pairs = [
        (y.data, expected[0]),
        (tensor.grad, expected[1]),
        (plugin.lora_A.grad, made.A_grad),
        (plugin.lora_E.grad, made.E_grad),
        (plugin.lora_B.grad, made.B_grad),
        (penalty.data, np.asarray(value)),
        (rows.grad, grad),
    ]
    for found, wanted in pairs:
        assert found is not None
        assert found.dtype == dtype
        assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_the_plugins_scores_agree(rng: np.random.Generator) -> None:
    plugin, _ = plugin_layer(np.float64)
    averages = {name: Importance(p.shape) for name, p in plugin.triplets.items()}
    for _ in range(3):
        for name, parameter in plugin.triplets.items():
            parameter.grad = rng.standard_normal(parameter.shape)
            averages[name].update(parameter.data, parameter.grad)
        plugin.observe()
    a, e, b = (averages[name].score() for name in TRIPLET)
    np.testing.assert_allclose(plugin.scores(), triplet_scores(a, e, b), rtol=1e-12)


def test_the_plugins_budget_agrees() -> None:
    budget = Budget(AdaLoraConfig(init_r=10, target_r=2, tinit=3, tfinal=4))
    for step in range(1, 15):
        budget.advance(10 * 6, run=18)
        expected = cubic_budget(step, 60, 12, tinit=3, tfinal=4, total=18)
        assert step <= 3 or budget.triplets(6) == expected
        assert budget.is_due == (step > 3)
