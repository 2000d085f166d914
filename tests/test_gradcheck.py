from collections.abc import Callable

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.ops import Result
from tinygrad_peft.tensor import Tensor, apply


def leaf(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)


def wrong_by(share: float, scale: float) -> Callable[[Tensor], Tensor]:
    """scale x², with a gradient that is off by a share."""

    def square(a: Array) -> Result:
        return scale * a * a, (lambda g: g * 2 * scale * a * (1 + share),)

    return lambda x: apply(square, x)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_a_gradient_that_is_wrong_by_a_thousandth_is_found_at_any_scale(scale: float) -> None:
    assert check_gradients(wrong_by(0.0, scale), [leaf(3, 4)]) < 1e-8
    with pytest.raises(AssertionError, match="relative error"):
        check_gradients(wrong_by(1e-3, scale), [leaf(3, 4)])


def test_the_message_names_the_input_its_shape_and_both_values() -> None:
    with pytest.raises(
        AssertionError,
        match=r"input 0 of shape \(3,\): backward gives .*, differences give .*, relative error",
    ):
        check_gradients(wrong_by(0.5, 1.0), [leaf(3)])


def test_a_missing_gradient_is_found() -> None:
    with pytest.raises(AssertionError, match="input 1"):
        check_gradients(lambda a, b: a * b.detach(), [leaf(3), leaf(3)])


def test_a_gradient_that_is_not_a_number_is_found() -> None:
    with pytest.raises(AssertionError, match="nan"):
        check_gradients(wrong_by(float("nan"), 1.0), [leaf(3)])


def test_a_gradient_of_zero_passes() -> None:
    assert check_gradients(lambda x: x * 0 + 5, [leaf(2, 3)]) == 0
    assert check_gradients(lambda x: x[:0].sum(), [leaf(2, 3)]) == 0


def test_inputs_without_a_gradient_are_skipped_and_all_inputs_are_restored() -> None:
    x, fixed = leaf(2), Tensor(np.array([3, 4], np.float32))
    before = x.data.copy()

    assert check_gradients(lambda a, b: a * b, [x, fixed]) < 1e-8
    np.testing.assert_array_equal(x.data, before)


def test_inputs_are_restored_when_the_function_fails() -> None:
    x = leaf(2)
    before, calls = x.data, []

    def fails_on_the_second_call(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == 2:
            raise OSError
        return x.sum()

    with pytest.raises(OSError):  # noqa: PT011 - raised above
        check_gradients(fails_on_the_second_call, [x])
    assert x.data is before


def test_float32_is_refused() -> None:
    with pytest.raises(TypeError, match="input 0: expected float64, got float32"):
        check_gradients(lambda x: x, [Tensor([1.0], requires_grad=True)])
