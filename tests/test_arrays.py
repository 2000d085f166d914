import os
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_peft.arrays import BLOCK_ELEMENTS, Array, blocks, rows, unbroadcast


@pytest.mark.parametrize(
    ("grad", "shape", "expected"),
    [
        ((2, 3), (2, 3), np.ones((2, 3))),
        ((2, 3), (3,), np.full(3, 2.0)),
        ((2, 3), (1, 3), np.full((1, 3), 2.0)),
        ((2, 3), (2, 1), np.full((2, 1), 3.0)),
        ((2, 3), (), np.array(6.0)),
        ((4, 2, 3), (2, 1), np.full((2, 1), 12.0)),
        ((0,), (1,), np.zeros(1)),
        ((0, 3), (3,), np.zeros(3)),
    ],
)
def test_a_gradient_is_summed_over_the_axes_that_were_stretched(
    grad: tuple[int, ...],
    shape: tuple[int, ...],
    expected: Array,
) -> None:
    np.testing.assert_array_equal(unbroadcast(np.ones(grad), shape), expected)


@given(count=st.integers(0, 5_000), width=st.integers(0, 200_000))
def test_blocks_cover_all_rows_once_and_fit(count: int, width: int) -> None:
    found = list(blocks(count, width))

    assert [i for block in found for i in range(block.start, block.stop)] == list(range(count))
    for block in found:
        size = block.stop - block.start
        assert size == 1 or size * width <= BLOCK_ELEMENTS


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3), (0, 3), (2, 0, 3), (2, 0)])
def test_rows_are_a_matrix_of_the_last_axis(shape: tuple[int, ...]) -> None:
    assert rows(np.zeros(shape)).shape == (int(np.prod(shape[:-1])), shape[-1])


PAGE_FAULTS = """
import resource
import numpy as np
from tinygrad_peft.arrays import keep_freed_memory
keep_freed_memory()
def step():
    arrays = [np.ones(200_000, np.float32) for _ in range(20)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not str(sysconfig.get_config_var("HOST_GNU_TYPE")).endswith("linux-gnu"),
    reason="glibc's malloc",
)
def test_memory_that_one_step_frees_serves_the_next() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    faults = subprocess.check_output([sys.executable, "-c", PAGE_FAULTS], env=environment)

    assert int(faults) < 100, "left alone, glibc makes about 40,000 of them"
