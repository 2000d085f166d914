from collections.abc import Callable

import numpy as np
import pytest

from tinygrad_peft.tensor import Tensor


@pytest.mark.parametrize(
    "function",
    [lambda a: a * a, lambda a: a + 1, lambda a: -a, lambda a: a.exp(), lambda a: a.sum()],
    ids=["mul", "add", "neg", "exp", "sum"],
)
def test_a_zero_dimensional_tensor_stays_an_array(function: Callable[[Tensor], Tensor]) -> None:
    x = Tensor(np.array(0.5), requires_grad=True)
    y = function(x)
    y.backward()

    assert type(y.data) is np.ndarray
    assert type(x.grad) is np.ndarray
    assert y.numpy().shape == y.shape == x.grad.shape == ()
