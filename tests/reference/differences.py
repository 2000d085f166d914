"""Hand-derived gradients against central differences."""

from collections.abc import Callable

import numpy as np

from tinygrad_peft.arrays import Array


def assert_gradient(forward: Callable[[], Array], g: Array, array: Array, grad: Array) -> None:
    """`grad` is the gradient of Σ g ⊙ forward() for the float64 array that forward reads."""
    assert array.dtype == np.float64
    np.testing.assert_allclose(grad, differences(forward, g, array), rtol=1e-6, atol=1e-8)


def differences(forward: Callable[[], Array], g: Array, array: Array, step: float = 1e-5) -> Array:
    """(f(a + h) - f(a - h)) / 2h, one element of the array after the other."""
    slopes = np.empty_like(array)
    for place in np.ndindex(array.shape):
        before = array[place]
        array[place] = before + step
        above = forward()
        array[place] = before - step
        below = forward()
        array[place] = before
        slopes[place] = (g * (above - below)).sum() / (2 * step)
    return slopes
