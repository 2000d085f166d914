import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Init, Linear, Parameter
from tinygrad_peft.reference import VeRALayer
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_vera import DrawnProjection, VeraConfig, VeraLinear

SHAPES = pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])


def layer(rng: np.random.Generator, rank: int = 3) -> VeRALayer:
    made = VeRALayer(5, 4, rank, rng=rng)
    made.lambda_b = rng.standard_normal(4)
    return made


def test_it_starts_as_its_weight(rng: np.random.Generator) -> None:
    W, x = rng.standard_normal((4, 5)), rng.standard_normal((3, 5))
    made = VeRALayer(5, 4, rank=8, rng=rng)
    assert made.num_parameters() == 4 + 8
    assert (made.forward(x, W) == x @ W.T).all()
    assert np.abs(made.A).max() <= np.sqrt(6 / 5)
    assert np.abs(made.B).max() <= np.sqrt(6 / 8)


def test_two_layers_share_their_matrices(rng: np.random.Generator) -> None:
    first = layer(rng)
    second = VeRALayer(5, 4, 3, A=first.A, B=first.B)
    assert second.A is first.A
    assert second.B is first.B
    with pytest.raises(ValueError, match="A"):
        VeRALayer(6, 4, 3, A=first.A, B=first.B)


@SHAPES
def test_the_gradients_agree_with_differences(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    made, x, W = layer(rng), rng.standard_normal(shape), rng.standard_normal((4, 5))
    g = rng.standard_normal((*shape[:-1], 4))

    def forward() -> Array:
        return made.forward(x, W)

    forward()
    grad_x = made.backward(g)
    gradients = [
        (x, grad_x),
        (made.lambda_d, made.lambda_d_grad),
        (made.lambda_b, made.lambda_b_grad),
    ]
    for array, grad in gradients:
        assert_gradient(forward, g, array, grad)


@SHAPES
def test_a_merged_weight_gives_the_same_output(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    made, x, W = layer(rng), rng.standard_normal(shape), rng.standard_normal((4, 5))
    np.testing.assert_allclose(x @ made.merge(W).T, made.forward(x, W), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_the_plugin_agrees(
    rng: np.random.Generator, dtype: type[np.floating], tolerance: float
) -> None:
    init = Init(0, dtype)
    base = Linear.of(Parameter(init.normal(4, 5, std=1), requires_grad=False))
    config = VeraConfig(r=6)
    plugin = VeraLinear(base, config, DrawnProjection(config, 9, 7, init), init)
    plugin.vera_lambda_b.data = init.normal(4, std=1)
    plugin.vera_lambda_d.data = init.normal(6, std=1)
    a, b = plugin.matrices
    made = VeRALayer(5, 4, 6, A=a, B=b)
    made.lambda_b, made.lambda_d = plugin.vera_lambda_b.data, plugin.vera_lambda_d.data
    x, g = (rng.standard_normal((2, 3, n)).astype(dtype) for n in (5, 4))
    tensor = Tensor(x, requires_grad=True)
    y = plugin(tensor)
    y.backward(g)
    expected = made.forward(x, base.weight.data), made.backward(g)
    pairs = [
        (y.data, expected[0]),
        (tensor.grad, expected[1]),
        (plugin.vera_lambda_b.grad, made.lambda_b_grad),
        (plugin.vera_lambda_d.grad, made.lambda_d_grad),
    ]
    for found, wanted in pairs:
        assert found is not None
        assert found.dtype == dtype
        assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
