"""The batches of a step."""

import numpy as np
import pytest

from tests.train.toys import needles
from tinygrad_peft.train import TrainConfig
from tinygrad_peft.train.step_batches import count_steps, step_batches


def test_an_epoch_ends_with_a_smaller_step_where_batches_run_out() -> None:
    config = TrainConfig(batch_size=4, accumulation=2, epochs=2)
    made = list(step_batches(config, needles(18)))  # 5 batches an epoch
    assert [len(step.batches) for step in made] == [2, 2, 1] * 2
    assert [step.epoch for step in made] == [1, 1, 1, 2, 2, 2]
    assert [step.ends_epoch for step in made] == [False, False, True] * 2
    assert [step.epochs_seen for step in made] == pytest.approx([0.4, 0.8, 1, 1.4, 1.8, 2])
    assert [step.place for step in made[2:4]] == ["epoch 1, batch 5", "epoch 2, batches 1 to 2"]
    assert count_steps(config, 18) == len(made)


def test_each_epoch_has_every_example_once_and_its_own_order() -> None:
    config = TrainConfig(batch_size=4, epochs=2)
    places = [[*step.batches[0].index] for step in step_batches(config, needles(18))]
    first, second = np.concatenate(places[:5]), np.concatenate(places[5:])
    assert sorted(first) == sorted(second) == list(range(18))
    assert list(first) != list(second)


@pytest.mark.parametrize(("max_steps", "count"), [(3, 3), (100, 10)])
def test_max_steps_end_a_run_before_its_epochs_do(max_steps: int, count: int) -> None:
    config = TrainConfig(batch_size=4, epochs=2, max_steps=max_steps)
    assert count_steps(config, 18) == count
    assert len(list(step_batches(config, needles(18)))) == count
