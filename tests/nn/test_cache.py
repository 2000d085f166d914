import numpy as np
import pytest

from tinygrad_peft.errors import GraphError, ShapeError
from tinygrad_peft.nn import LayerCache
from tinygrad_peft.tensor import Tensor


def part(value: float, tokens: int) -> Tensor:
    return Tensor(np.full((2, tokens, 1, 3), value))


def test_a_cache_returns_its_keys_and_values_in_order() -> None:
    cache = LayerCache(capacity=5)
    cache.extend(part(1, 2), part(-1, 2))
    keys, values = cache.extend(part(2, 1), part(-2, 1))

    assert cache.length == 3
    np.testing.assert_array_equal(keys.data[0, :, 0, 0], [1, 1, 2])
    np.testing.assert_array_equal(values.data[1, :, 0, 2], [-1, -1, -2])


def test_a_full_cache_takes_no_more() -> None:
    cache = LayerCache(capacity=2)
    with pytest.raises(ShapeError, match="cache: expected at most 2 tokens, got 3"):
        cache.extend(part(1, 3), part(1, 3))
    assert cache.length == 0


def test_a_cache_does_not_silently_cut_a_gradient() -> None:
    keys = Tensor(np.zeros((1, 1, 1, 1)), requires_grad=True)
    for pair in ((keys, keys.detach()), (keys.detach(), keys)):
        with pytest.raises(GraphError, match=r"without gradients: use it within no_grad\(\)"):
            LayerCache(capacity=2).extend(*pair)


def test_rows_of_rows_of_a_cache_are_kept_in_the_whole() -> None:
    whole, row = LayerCache(capacity=3), np.array([1])
    for step in (1.0, 2.0):
        few = whole.of(np.array([0, 2]), batch=3)
        first, last = (few.of(rows, batch=2) for rows in (np.array([0]), row))
        alone = whole.of(row, batch=3)
        for value, cache in ((step, first), (-step, last), (9.0, alone)):
            one = Tensor(np.full((1, 1, 1, 3), value))
            keys, _ = cache.extend(one, one)
            assert cache.length == keys.shape[1] == step
    keys, _ = whole.extend(Tensor(np.zeros((3, 1, 1, 3))), Tensor(np.zeros((3, 1, 1, 3))))
    np.testing.assert_array_equal(keys.data[:, :, 0, 0], [[1, 2, 0], [9, 9, 0], [-1, -2, 0]])
