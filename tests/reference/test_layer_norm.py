import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.reference import layer_norm, layer_norm_backward


def test_rows_come_out_with_the_mean_and_the_deviation_asked_for(rng: np.random.Generator) -> None:
    y = layer_norm(rng.standard_normal((4, 50)), np.full(50, 3.0), np.full(50, 2.0), eps=0)
    np.testing.assert_allclose(y.mean(axis=-1), 2, rtol=1e-12)
    np.testing.assert_allclose(y.std(axis=-1), 3, rtol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])
def test_the_gradients_agree_with_differences(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    x, g = rng.standard_normal(shape), rng.standard_normal(shape)
    weight, bias = rng.standard_normal(5), rng.standard_normal(5)
    grads = layer_norm_backward(g, x, weight, eps=0.1)
    for array, grad in zip((x, weight, bias), grads, strict=True):
        assert_gradient(lambda: layer_norm(x, weight, bias, eps=0.1), g, array, grad)


def test_weights_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bias: expected shape \(5,\), got \(4,\)"):
        layer_norm(np.ones((3, 5)), np.ones(5), np.ones(4))
