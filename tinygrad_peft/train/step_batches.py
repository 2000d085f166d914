"""The batches of each step of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from tinygrad_peft.train.batching import Batch, batches
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.encoding import EncodedData

__all__ = ["StepBatches", "count_steps", "step_batches"]


@dataclass(frozen=True, slots=True, eq=False)
class StepBatches:
    """The batches whose gradients make one step."""

    batches: tuple[Batch, ...]
    epoch: int  # counted from 1
    first: int  # the number of the first batch within its epoch, counted from 1
    epochs_seen: float  # after the step: 1.0 is the whole training set once
    ends_epoch: bool

    @property
    def place(self) -> str:
        """The epoch and the numbers of the batches, in words."""
        last = self.first + len(self.batches) - 1
        numbers = f"batch {last}" if last == self.first else f"batches {self.first} to {last}"
        return f"epoch {self.epoch}, {numbers}"


def count_steps(config: TrainConfig, examples: int) -> int:
    """Count the steps of a run over `examples` examples."""
    total = _steps_per_epoch(config, examples) * config.epochs
    return total if config.max_steps is None else min(total, config.max_steps)


def step_batches(
    config: TrainConfig, train_set: EncodedData, *, start: int = 0
) -> Iterator[StepBatches]:
    """Yield the batches of each step of a run after the first `start`.

    The batches of an epoch are made when its turn comes, and those of earlier epochs never.
    """
    epochs, skipped = divmod(start, _steps_per_epoch(config, len(train_set)))
    every = (
        step
        for epoch in range(epochs + 1, config.epochs + 1)
        for step in _steps_of_epoch(config, train_set, epoch)
    )
    return islice(every, skipped, skipped + count_steps(config, len(train_set)) - start)


def _steps_of_epoch(
    config: TrainConfig, train_set: EncodedData, epoch: int
) -> Iterator[StepBatches]:
    made = batches(train_set, config.batch_size, seed=config.seed, epoch=epoch - 1)
    for start in range(0, len(made), config.accumulation):
        end = min(start + config.accumulation, len(made))
        yield StepBatches(
            batches=tuple(made[start:end]),
            epoch=epoch,
            first=start + 1,
            epochs_seen=epoch - 1 + end / len(made),
            ends_epoch=end == len(made),
        )


def _steps_per_epoch(config: TrainConfig, examples: int) -> int:
    return _divide_up(_divide_up(examples, config.batch_size), config.accumulation)


def _divide_up(count: int, size: int) -> int:
    return -(-count // size)
