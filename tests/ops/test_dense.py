import numpy as np
import pytest

from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import ShapeError, TokenError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape))


def test_linear_is_a_product_and_a_sum() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, 3, 4)), rng.standard_normal((5, 4)), np.arange(5.0)
    expected = np.einsum("bti,oi->bto", x, weight) + bias

    np.testing.assert_allclose(F.linear(*map(Tensor, (x, weight, bias))).data, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (
            (2, 3),
            (4, 2),
            None,
            r"expected x \(\.\.\., 2\) for W of shape \(4, 2\), got shape \(2, 3\)",
        ),
        ((2, 3), (3,), None, r"expected W \(out, in\), got shape \(3,\)"),
        ((), (4, 3), None, r"got shape \(\)"),
        ((2, 3), (4, 3), (1,), r"expected b \(4,\), got shape \(1,\)"),
        ((2, 3), (4, 3), (2, 4), r"expected b \(4,\), got shape \(2, 4\)"),
    ],
)
def test_linear_names_shapes_that_do_not_fit(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        F.linear(zeros(*x), zeros(*weight), None if bias is None else zeros(*bias))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint64])
def test_an_embedding_is_the_rows_of_its_table(kind: type[np.integer]) -> None:
    table = np.arange(12.0).reshape(4, 3)
    ids = np.array([[3, 0], [0, 1]], kind)

    np.testing.assert_array_equal(F.embedding(Tensor(table), ids).data, table[[[3, 0], [0, 1]]])


def test_repeated_ids_add_up_in_the_gradient() -> None:
    table = Tensor(np.zeros((4, 2)), requires_grad=True)
    F.embedding(table, np.array([1, 3, 1])).backward(np.array([[1.0, 2], [3, 4], [5, 6]]))

    np.testing.assert_array_equal(table.grad, [[0, 0], [6, 8], [0, 0], [3, 4]])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[0, 1], [4, 2]]), r"token id 4 at position \(1, 0\) is outside .* 0\.\.3"),
        (np.array([0, -1]), r"token id -1 at position \(1,\)"),
        (np.array([0.0]), "token ids: expected integers, got float64"),
        (np.array([True]), "got bool"),
    ],
)
def test_ids_outside_the_table_are_named(ids: AnyArray, message: str) -> None:
    with pytest.raises(TokenError, match=message):
        F.embedding(zeros(4, 2), ids)


def test_dropout_scales_what_it_keeps() -> None:
    x, keep = Tensor([1.0, 2.0, 3.0], requires_grad=True), np.array([True, False, True])
    y = F.dropout(x, keep, 0.5)
    y.backward(np.ones(3))

    np.testing.assert_array_equal(y.data, [2, 0, 6])
    np.testing.assert_array_equal(x.grad, [2, 0, 2])
