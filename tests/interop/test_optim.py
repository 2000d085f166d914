"""Optimisers, clipping and schedules beside those of PyTorch and transformers."""

import numpy as np
import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from tinygrad_peft.nn import (
    SGD,
    AdamW,
    Optimizer,
    Parameter,
    clip_grad_norm,
    constant,
    cosine_decay,
    linear_decay,
)

SHAPES = [(300, 400), (7, 3), (5,)]
STEPS = 25


def pairs(rng: np.random.Generator) -> tuple[list[Parameter], list[torch.nn.Parameter]]:
    arrays = [rng.standard_normal(shape) for shape in SHAPES]
    theirs = [torch.nn.Parameter(torch.tensor(array)) for array in arrays]
    return [Parameter(array.copy()) for array in arrays], theirs


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_clipped_steps_equal_those_of_torch(
    name: str, decay: float, rng: np.random.Generator
) -> None:
    ours, theirs = pairs(rng)
    optimizer: Optimizer
    peer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = AdamW(ours, lr=1e-2, weight_decay=decay)
        peer = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=decay)
    else:
        optimizer = SGD(ours, lr=1e-2, momentum=0.9, weight_decay=decay)
        peer = torch.optim.SGD(theirs, lr=1e-2, momentum=0.9, weight_decay=decay)
    for _ in range(STEPS):
        for our, their in zip(ours, theirs, strict=True):
            our.grad = rng.standard_normal(our.shape)
            their.grad = torch.tensor(our.grad)
        norm = clip_grad_norm(ours, 0.5)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 0.5)))
        optimizer.step()
        peer.step()
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our.data, their.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("total", "warmup"), [(8, 3), (50, 0), (120, 8), (5, 5)])
def test_schedules_equal_those_of_transformers_at_every_step(total: int, warmup: int) -> None:
    def rates(make: object, *settings: int) -> list[float]:
        assert callable(make)
        peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(peer, *settings)
        found = []
        for _ in range(total + 1):
            found.append(schedule.get_last_lr()[0])
            peer.step()
            schedule.step()
        return found

    steps = range(total + 1)
    linear, cosine = linear_decay(total, warmup), cosine_decay(total, warmup)
    assert [linear(s) for s in steps] == rates(get_linear_schedule_with_warmup, warmup, total)
    assert [cosine(s) for s in steps] == rates(get_cosine_schedule_with_warmup, warmup, total)
    steady = constant(warmup)
    assert [steady(s) for s in steps] == rates(get_constant_schedule_with_warmup, warmup)
