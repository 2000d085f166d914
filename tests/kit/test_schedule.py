"""The schedule that a new plugin starts with, in training."""

import numpy as np
import pytest

from tinygrad_peft.kit.templates import schedule
from tinygrad_peft.peft import Host, get_peft_model
from tinygrad_peft.testing import SMALL_MODELS, small_model
from tinygrad_peft.train import Batch, Stepper, TrainConfig


def test_training_leaves_the_largest_scales_and_reports_the_penalty() -> None:
    host = Host()
    host.register(schedule, "example")
    config = schedule.ExampleConfig(r=4, kept=1, penalty=0.5)
    peft = get_peft_model(small_model(SMALL_MODELS["gpt2"]), config, host=host)
    stepper = Stepper(peft, TrainConfig(lr=1e-2), total_steps=3)
    ids = np.random.default_rng(0).integers(0, 40, (2, 5))
    layers = [
        module
        for _, module in peft.base_model.named_modules()
        if isinstance(module, schedule.ExampleLinear)
    ]
    counts = []
    for _ in range(3):
        stepper.step(Batch(ids, np.ones_like(ids, bool), ids, np.arange(2)))
        counts.append({int(np.count_nonzero(layer.s.data)) for layer in layers})
    assert counts == [{3}, {2}, {1}]
    assert stepper.extra_losses["example"] == pytest.approx(
        np.mean([layer.penalty().data for layer in layers]), rel=0.2
    )
