import numpy as np
import pytest

from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_sums_and_means_match_numpy(axis: int | tuple[int, ...] | None, keepdims: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    for name in ("sum", "mean"):
        ours, expected = (getattr(of, name)(axis=axis, keepdims=keepdims) for of in (Tensor(x), x))
        np.testing.assert_allclose(ours.data, expected, rtol=1e-12, strict=True)


def test_the_gradient_of_the_largest_goes_to_the_first_of_equals() -> None:
    x = Tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]], requires_grad=True)
    F.max(x, axis=1).backward(np.array([1.0, 2.0]))

    np.testing.assert_array_equal(x.grad, [[0, 1, 0], [2, 0, 0]])


def test_an_entry_that_is_picked_twice_gets_both_gradients() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    x[np.array([0, 0, 1])].backward(np.array([1.0, 2.0, 4.0]))

    np.testing.assert_array_equal(x.grad, [3, 4])


def test_an_index_outside_is_an_error() -> None:
    with pytest.raises(IndexError):
        Tensor([1.0, 2.0])[2]


def test_reshape_and_basic_indexing_copy_nothing() -> None:
    x = Tensor(np.zeros((4, 6)))

    for view in (x.reshape(-1), x[1:, ::2], x.transpose(), F.broadcast_to(x, (2, 4, 6))):
        assert np.shares_memory(view.data, x.data)
