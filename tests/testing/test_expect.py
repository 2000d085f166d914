import re

import numpy as np
import pytest

from tinygrad_peft.nn import Linear, Module
from tinygrad_peft.testing.expect import Snapshot, expect, expect_close, expect_same


def test_what_holds_says_nothing() -> None:
    array = np.array([1.0, np.inf])
    expect(True, "")
    expect_same(array[:1], array[:1].copy(), "")
    expect_close(array[:1] + 1e-7, array[:1], "")


def test_what_does_not_hold_is_said() -> None:
    with pytest.raises(AssertionError, match=r"^lora on gpt2: broken$"):
        expect(False, "lora on gpt2: broken")


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (np.ones((2, 3), np.float32), "y: expected float64 (2, 3), got float32 (2, 3)"),
        (np.ones((3, 2)), "y: expected float64 (2, 3), got float64 (3, 2)"),
        (
            np.array([[1.0, 1, 1], [1, 1.5, 2]]),
            (
                "y: 2 of 6 values are not equal; the first is at (1, 1): "
                "expected np.float64(1.0), got np.float64(1.5)"
            ),
        ),
        (np.full((2, 3), np.nan), "y: 6 of 6 values are not equal; the first is at (0, 0)"),
    ],
)
def test_different_arrays_are_distinguished(got: np.ndarray, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        expect_same(got, np.ones((2, 3)), "y")


def test_arrays_may_differ_by_a_part_of_the_largest_value() -> None:
    expected = np.array([1000.0, 0.0])
    expect_close(expected + 9e-4, expected, "y")
    with pytest.raises(AssertionError, match=r"y: 2 of 2 values differ by more than 0\.001; the"):
        expect_close(expected + 2e-3, expected, "y")
    with pytest.raises(AssertionError, match="2 of 2 values differ"):
        expect_close(np.array([np.nan, np.nan]), expected, "y")


class Pair(Module):
    def __init__(self) -> None:
        self.left, self.right = Linear(2, 2), Linear(2, 2)


def test_a_model_that_nobody_touched_is_what_it_was() -> None:
    pair = Pair()
    Snapshot.of(pair).expect_unchanged(pair, "the pair")


def test_all_that_was_changed_in_a_model_is_listed() -> None:
    pair = Pair()
    before = Snapshot.of(pair)
    pair.left.weight.data += 1
    pair.left.weight.requires_grad = False
    pair.left.bias = None
    pair.right = Linear(2, 2)
    vars(pair)["more"] = Linear(2, 2, bias=False)
    with pytest.raises(AssertionError) as raised:
        before.expect_unchanged(pair, "the pair")
    assert str(raised.value).splitlines() == [
        "the pair is not what it was:",
        "  - right: another module, or none",
        "  - more: another module, or none",
        "  - left.weight: requires_grad was True and is False",
        "  - left.weight has other values",
        "  - left.bias is gone",
        "  - right.weight is another parameter",
        "  - right.bias is another parameter",
        "  - more.weight is new",
    ]
