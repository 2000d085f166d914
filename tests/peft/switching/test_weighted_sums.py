"""Weighted sums of arrays, by hand and by chance."""

import numpy as np
import pytest

from tinygrad_peft.peft import Combination, CombinationType, weighted_sum

ONE = np.array([[4.0, -1.0], [2.0, 0.5]])
OTHER = np.array([[-2.0, -3.0], [8.0, 0.1]])


def how(kind: CombinationType, density: float = 0.5, seed: int = 0) -> Combination:
    return Combination((), kind, None, density, seed)


def test_the_linear_sum_has_every_element() -> None:
    found = weighted_sum(how("linear"), [(0.5, ONE), (2.0, OTHER)], 0)
    np.testing.assert_array_equal(found, 0.5 * ONE + 2 * OTHER)


def test_ties_drops_small_elements_and_those_of_the_weaker_sign() -> None:
    # Kept: 4 and 2 of the one, -3 and 8 of the other, each times its weight.
    found = weighted_sum(how("ties"), [(1.0, ONE), (0.5, OTHER)], 0)
    np.testing.assert_array_equal(found, [[4.0, -1.5], [(2 + 4) / 2, 0.0]])


def test_ties_takes_the_sign_of_the_larger_sum() -> None:
    found = weighted_sum(how("ties", density=1.0), [(1.0, ONE), (-1.0, OTHER)], 0)
    np.testing.assert_array_equal(found, [[3.0, 3.0], [-8.0, 0.5]])


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties"])
def test_dare_divides_what_it_keeps_by_the_density(kind: CombinationType) -> None:
    update = np.ones((40, 50))
    found = weighted_sum(how(kind, density=0.25), [(3.0, update)], 0)
    assert set(np.unique(found)) == {0.0, 12.0}
    assert abs(np.mean(found != 0) - 0.25) < 0.05


def test_dare_draws_anew_for_each_seed_and_each_place() -> None:
    update = np.ones((8, 9))
    first, again, other_seed, other_place = (
        weighted_sum(how("dare_linear", seed=seed), [(1.0, update)], place)
        for seed, place in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(first, other_place)
