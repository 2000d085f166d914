import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import ACTIVATIONS, Adapter


def adapter(
    rng: np.random.Generator, activation: str = "relu", *, bias: bool = True, scaling: float = 1.0
) -> Adapter:
    made = Adapter(5, 3, activation, bias=bias, scaling=scaling, rng=rng)
    made.W_down, made.W_up = rng.standard_normal((5, 3)), rng.standard_normal((3, 5))
    if bias:
        made.b_down, made.b_up = rng.standard_normal(3), rng.standard_normal(5)
    return made


def grads(made: Adapter) -> list[tuple[Array, Array]]:
    return [
        (made.W_down, made.W_down_grad),
        (made.W_up, made.W_up_grad),
        (made.b_down, made.b_down_grad),
        (made.b_up, made.b_up_grad),
    ]


def test_it_starts_near_the_identity(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 256))
    assert 0 < np.abs(Adapter(256).forward(x) - x).max() < 0.1


def test_its_parameters_are_two_matrices_and_on_request_two_biases() -> None:
    assert Adapter(256).num_parameters() == 32_768
    assert Adapter(256, bottleneck=32).num_parameters() == 16_384
    assert Adapter(256, 64, bias=True).num_parameters() == 32_768 + 256 + 64


def test_the_output_follows_the_formula(rng: np.random.Generator) -> None:
    made, x = adapter(rng), rng.standard_normal((2, 3, 5))
    hidden = np.maximum(x @ made.W_down + made.b_down, 0)
    np.testing.assert_allclose(made.forward(x), x + hidden @ made.W_up + made.b_up, rtol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_agree_with_differences(
    rng: np.random.Generator, shape: tuple[int, ...], activation: str, bias: bool
) -> None:
    made, x, g = (
        adapter(rng, activation, bias=bias),
        rng.standard_normal(shape),
        rng.standard_normal(shape),
    )
    made.forward(x)
    grad_x = made.backward(g)
    for array, grad in [(x, grad_x), *grads(made)]:
        assert_gradient(lambda: made.forward(x), g, array, grad)


def test_beside_a_sublayer_the_scaled_update_is_added(rng: np.random.Generator) -> None:
    made, weight = adapter(rng, "silu", scaling=4.0), rng.standard_normal((5, 5))
    x, g = rng.standard_normal((7, 5)), rng.standard_normal((7, 5))

    def parallel() -> Array:
        return x @ weight.T + made.update(x)

    unscaled = adapter(np.random.default_rng(0), "silu").update(x)
    np.testing.assert_allclose(made.update(x), 4 * unscaled, rtol=1e-12)
    grad_x = g @ weight + made.update_backward(g)
    for array, grad in [(x, grad_x), *grads(made)]:
        assert_gradient(parallel, g, array, grad)


def test_sizes_and_names_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got bottleneck_dim=0"):
        Adapter(5, 0)
    with pytest.raises(ValueError, match="expected at least 1, got bottleneck_dim=0"):
        Adapter(5, bottleneck=0)
    message = "bottleneck or bottleneck_dim, got bottleneck=3 and bottleneck_dim="
    for given in (4, 64):
        with pytest.raises(ValueError, match=f"{message}{given}"):
            Adapter(5, given, bottleneck=3)
    with pytest.raises(ValueError, match=r"unknown activation 'gelo', .* did you mean 'gelu'\?"):
        Adapter(5, 3, "gelo")
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 5\), got \(3, 4\)"):
        Adapter(5, 3).forward(np.ones((3, 4)))
    with pytest.raises(RuntimeError, match="backward needs a forward"):
        Adapter(5, 3).backward(np.ones((3, 5)))
