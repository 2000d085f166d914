"""Tokens, padding and time."""

import numpy as np
import pytest

from tests.train.toys import needles
from tinygrad_peft.train import TrainConfig
from tinygrad_peft.train.step_batches import step_batches
from tinygrad_peft.train.tally import Tally


def test_a_tally_counts_tokens_padding_and_time() -> None:
    tally = Tally()
    assert (tally.tokens_per_second, tally.padding_share) == (0.0, 0.0)
    examples = needles(8)
    (step,) = step_batches(TrainConfig(batch_size=8), examples)
    tally.add(step.batches, seconds=0.5)
    lengths = [len(row.input_ids) for row in examples]
    assert tally.tokens == sum(lengths)
    assert tally.places == 8 * max(lengths)
    assert tally.tokens_per_second == sum(lengths) / 0.5
    assert tally.padding_share == pytest.approx(1 - np.mean(lengths) / max(lengths))
