"""Learning-rate schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_peft.nn import Schedule, constant, cosine_decay, linear_decay

# What transformers' get_{linear,cosine,constant}_schedule_with_warmup give for 8 steps, 3 of them
# warm-up.
LINEAR = [0.0, 1 / 3, 2 / 3, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
COSINE = [
    *(0.0, 1 / 3, 2 / 3, 1.0, 0.9045084971874737, 0.6545084971874737),
    *(0.34549150281252633, 0.09549150281252633, 0.0),
]
CONSTANT = [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "table"),
    [(linear_decay(8, 3), LINEAR), (cosine_decay(8, 3), COSINE), (constant(3), CONSTANT)],
    ids=["linear", "cosine", "constant"],
)
def test_a_schedule_follows_its_table(schedule: Schedule, table: list[float]) -> None:
    assert [schedule(step) for step in range(9)] == pytest.approx(table, abs=1e-15)


@given(st.integers(1, 300), st.data())
def test_schedules_follow_their_formulas(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    step = data.draw(st.integers(warmup, total))
    progress = (step - warmup) / (total - warmup)
    assert linear_decay(total, warmup)(step) == pytest.approx(1 - progress)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    assert cosine_decay(total, warmup)(step) == pytest.approx(cosine)
    assert constant(warmup)(step) == 1


@pytest.mark.parametrize(
    "schedule", [linear_decay(8, 3), cosine_decay(8, 3)], ids=["linear", "cosine"]
)
def test_a_decayed_rate_stays_at_zero(schedule: Schedule) -> None:
    assert [schedule(step) for step in (9, 12, 100)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "schedule", [linear_decay(8), cosine_decay(8), constant()], ids=["linear", "cosine", "constant"]
)
def test_without_a_warmup_the_first_step_has_the_full_rate(schedule: Schedule) -> None:
    assert schedule(0) == 1.0
