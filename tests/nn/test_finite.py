from pathlib import Path

import numpy as np
import pytest

from tinygrad_peft.errors import CheckpointError, NonFiniteWarning
from tinygrad_peft.nn.finite import check_finite, nonfinite

BROKEN = [("a", np.ones(3)), ("b", np.array([1.0, np.nan, -np.inf, np.inf])), ("c", np.zeros(0))]


def test_arrays_with_nan_or_infinity_are_described_by_name() -> None:
    assert nonfinite(BROKEN) == ["b: 1 NaN and 2 infinite of 4 numbers"]
    assert nonfinite([("x", np.full((2, 3), np.nan))]) == ["x: 6 NaN of 6 numbers"]
    assert nonfinite(BROKEN[:1]) == []


def test_the_error_says_how_to_load_them_nevertheless() -> None:
    expected = "folder: expected finite weights, got: b: .*\nallow_nonfinite=True loads them"
    with pytest.raises(CheckpointError, match=expected):
        check_finite(Path("folder"), BROKEN, allowed=False)
    with pytest.warns(NonFiniteWarning, match="folder: expected finite weights, got: b: "):
        check_finite(Path("folder"), BROKEN, allowed=True)
