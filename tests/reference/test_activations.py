import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.reference import ACTIVATIONS

# From the definitions, computed to 12 digits elsewhere.
AT_ONE = {
    "relu": 1.0,
    "gelu": 0.841344746069,
    "gelu_tanh": 0.841191990608,
    "silu": 0.731058578630,
    "tanh": 0.761594155956,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_follow_the_definitions(name: str) -> None:
    value = ACTIVATIONS[name].value(np.array([0.0, 1.0]))
    np.testing.assert_allclose(value, [0, AT_ONE[name]], rtol=1e-11)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_agree_with_differences(name: str, rng: np.random.Generator) -> None:
    x, g = 2 * rng.standard_normal(50), rng.standard_normal(50)
    activation = ACTIVATIONS[name]
    assert_gradient(lambda: activation.value(x), g, x, g * activation.slope(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_large_inputs_overflow_nowhere(name: str) -> None:
    x = np.array([-1000.0, 1000.0])
    assert np.isfinite(ACTIVATIONS[name].value(x)).all()
    assert np.isfinite(ACTIVATIONS[name].slope(x)).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_stays_float32(name: str) -> None:
    x = np.ones(3, np.float32)
    assert ACTIVATIONS[name].value(x).dtype == ACTIVATIONS[name].slope(x).dtype == np.float32
