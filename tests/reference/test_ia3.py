import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Init, Linear, Parameter
from tinygrad_peft.reference import IA3Linear
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_ia3 import IA3Linear as PluginLinear

SIDES = pytest.mark.parametrize("on_input", [False, True], ids=["output", "input"])
SHAPES = pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])
BIASED = pytest.mark.parametrize("biased", [True, False])


def layer(rng: np.random.Generator, *, on_input: bool, biased: bool = True) -> IA3Linear:
    bias = rng.standard_normal(4) if biased else None
    made = IA3Linear(rng.standard_normal((4, 5)), bias, on_input=on_input)
    made.scale = rng.standard_normal(made.scale.shape)
    return made


@SIDES
def test_it_starts_as_its_layer(rng: np.random.Generator, on_input: bool) -> None:
    weight, x = rng.standard_normal((4, 5)), rng.standard_normal((3, 5))
    made = IA3Linear(weight, on_input=on_input)
    assert made.num_parameters() == (5 if on_input else 4)
    assert (made.forward(x) == x @ weight.T).all()


@SIDES
@SHAPES
@BIASED
def test_the_gradients_agree_with_differences(
    rng: np.random.Generator, on_input: bool, shape: tuple[int, ...], biased: bool
) -> None:
    made, x = layer(rng, on_input=on_input, biased=biased), rng.standard_normal(shape)
    g = rng.standard_normal((*shape[:-1], 4))

    def forward() -> Array:
        return made.forward(x)

    forward()
    grad_x = made.backward(g)
    for array, grad in ((x, grad_x), (made.scale, made.scale_grad)):
        assert_gradient(forward, g, array, grad)


@SIDES
@BIASED
def test_a_merged_layer_gives_the_same_output(
    rng: np.random.Generator, on_input: bool, biased: bool
) -> None:
    made, x = layer(rng, on_input=on_input, biased=biased), rng.standard_normal((2, 3, 5))
    weight, bias = made.merge()
    assert (bias is None) == (not biased)
    found = x @ weight.T + (0 if bias is None else bias)
    np.testing.assert_allclose(found, made.forward(x), rtol=1e-12)


@SIDES
@SHAPES
@BIASED
def test_the_plugin_is_the_reference(
    rng: np.random.Generator, on_input: bool, shape: tuple[int, ...], biased: bool
) -> None:
    oracle, x = layer(rng, on_input=on_input, biased=biased), rng.standard_normal(shape)
    bias = None if oracle.bias is None else Parameter(oracle.bias)
    base = Linear.of(Parameter(oracle.weight), bias)
    plugin = PluginLinear(base, Init(0, np.float64), on_input=on_input)
    plugin.ia3_l.data = oracle.scale.reshape(plugin.ia3_l.shape)
    given = Tensor(x, requires_grad=True)
    g = rng.standard_normal((*shape[:-1], 4))
    y = plugin(given)
    y.backward(g)
    np.testing.assert_allclose(y.data, oracle.forward(x), rtol=1e-12)
    assert given.grad is not None
    np.testing.assert_allclose(given.grad, oracle.backward(g), rtol=1e-12)
    assert plugin.ia3_l.grad is not None
    np.testing.assert_allclose(plugin.ia3_l.grad.ravel(), oracle.scale_grad, rtol=1e-12)


def test_what_does_not_fit_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"weight: expected shape \(out, in\), got \(5,\)"):
        IA3Linear(np.ones(5))
    with pytest.raises(ValueError, match=r"bias: expected shape \(4,\), got \(5,\)"):
        IA3Linear(np.ones((4, 5)), np.ones(5))
    made = layer(rng, on_input=False)
    with pytest.raises(RuntimeError, match="backward needs a forward before it"):
        made.backward(np.ones((3, 4)))
    with pytest.raises(ValueError, match="x: expected"):
        made.forward(np.ones((3, 4)))
