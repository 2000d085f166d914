import math

import numpy as np
import pytest

from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor


@pytest.mark.parametrize(("dtype", "relative"), [(np.float32, 4e-7), (np.float64, 1e-15)])
def test_erf_is_the_error_function(dtype: type[np.floating], relative: float) -> None:
    x = np.concatenate(
        [np.linspace(-6, 6, 20_001), [0.0, 1e-30, -1e-9, 3.999999, 4.000001, 50.0, -1e30, np.inf]]
    ).astype(dtype)
    expected = np.array([math.erf(float(v)) for v in x])

    np.testing.assert_allclose(F.erf(Tensor(x)).data, expected, rtol=relative, atol=0)


def test_erf_of_nan_is_nan() -> None:
    assert np.isnan(F.erf(Tensor(np.array([np.nan], np.float32))).data).all()


def test_the_gradient_of_the_larger_goes_to_the_first_of_equals() -> None:
    a, b = (Tensor(np.array(v), requires_grad=True) for v in ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]))
    F.maximum(a, b).backward(np.ones(3))

    np.testing.assert_array_equal(a.grad, [1, 0, 1])
    np.testing.assert_array_equal(b.grad, [0, 1, 0])


def test_a_product_of_stacks_is_the_sum_over_the_shared_axis() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1, 3, 4)), rng.standard_normal((5, 4, 6))

    expected = np.einsum("xijk,ykl->xyjl", a[:, 0][:, None], b)
    np.testing.assert_allclose((Tensor(a) @ Tensor(b)).data, expected, rtol=1e-12)
