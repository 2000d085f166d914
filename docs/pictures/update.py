"""Full fine-tuning on a task that takes four directions: the example of concepts.md."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from tinygrad_peft import Parameter, Tensor
from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Linear
from tinygrad_peft.nn.optim import SGD

__all__ = ["DIRECTIONS", "WIDTH", "Learnt", "learn", "shares"]

WIDTH, DIRECTIONS, EXAMPLES, STEPS = 32, 4, 100, 400


@dataclass(frozen=True)
class Learnt:
    """The change of a weight that the task needs, and the one that was learnt: (32, 32) each."""

    wanted: Array
    found: Array

    @property
    def strengths(self) -> Array:
        """The singular values of the learnt change: (32,)."""
        return np.linalg.svd(self.found)[1]

    @property
    def needed(self) -> Array:
        """The nonzero singular values of the task's change: (4,)."""
        return np.linalg.svd(self.wanted)[1][:DIRECTIONS]

    @property
    def share(self) -> float:
        """The share of the squared singular values in the first four."""
        squares = self.strengths**2
        return float(squares[:DIRECTIONS].sum() / squares.sum())

    def cut(self, rank: int) -> Array:
        """Truncate the learnt change to a rank (Eckart and Young 1936): (32, 32)."""
        u, s, vt = np.linalg.svd(self.found)
        nearest: Array = (u[:, :rank] * s[:rank]) @ vt[:rank]
        return nearest


@cache
def learn() -> Learnt:
    """Train a layer whole, by gradient descent, on 100 noisy examples of the task."""
    pretrained, wanted, x, y = _task()
    layer = Linear.of(Parameter(pretrained.copy()))
    optimizer = SGD(layer.parameters(), lr=0.4)
    for _ in range(STEPS):
        loss = ((layer(Tensor(x)) - y) ** 2).sum() * (0.5 / EXAMPLES)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Learnt(wanted, layer.weight.data - pretrained)


def shares(learnt: Learnt) -> tuple[list[float], list[float]]:
    """Compute the error of the truncated update at ranks 0 to 32, against both changes.

    Each as a share of that matrix's Frobenius norm.
    """
    cuts = [learnt.cut(rank) for rank in range(WIDTH + 1)]
    first, second = (
        [float(np.linalg.norm(cut - goal) / np.linalg.norm(goal)) for cut in cuts]
        for goal in (learnt.found, learnt.wanted)
    )
    return first, second


def _task() -> tuple[Array, Array, Array, Array]:
    """Draw the pretrained weight, the change that the task needs, and examples (x, y) of it.

    The page draws three tasks one after the other, and shows what was learnt of the third.
    """
    rng = np.random.default_rng(0)
    pretrained = rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
    *_, last = [_drawn(rng, directions) for directions in (4, 32, DIRECTIONS)]
    wanted, x, noise = last
    return pretrained, wanted, x, x @ (pretrained + wanted).T + 0.5 * noise


def _drawn(rng: np.random.Generator, directions: int) -> tuple[Array, Array, Array]:
    """Draw a change along some directions, (32, 32), and inputs and noise, (100, 32) each."""
    up, down = rng.standard_normal((WIDTH, directions)), rng.standard_normal((directions, WIDTH))
    wanted = up @ down / np.sqrt(WIDTH * directions)
    return wanted, rng.standard_normal((EXAMPLES, WIDTH)), rng.standard_normal((EXAMPLES, WIDTH))
