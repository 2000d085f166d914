"""Steps: which batches make one, and what they took."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from tinygrad_peft.train.batching import Batch, batches
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.data import Encoded

__all__ = ["Step", "Tally", "count_steps", "steps"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The batches whose gradients make one step."""

    batches: tuple[Batch, ...]
    epoch: int  # counted from 1
    first: int  # the number of the first batch within its epoch, counted from 1
    epochs_seen: float  # when the step is over: 1.0 is all of the training set once
    ends_epoch: bool

    @property
    def numbers(self) -> str:
        """The numbers of the batches, in words."""
        last = self.first + len(self.batches) - 1
        return f"batch {last}" if last == self.first else f"batches {self.first} to {last}"

    @property
    def tokens(self) -> int:
        """How many tokens there are, padding left out."""
        return sum(int(batch.attention_mask.sum()) for batch in self.batches)

    @property
    def places(self) -> int:
        """How many tokens there are, padding and all."""
        return sum(batch.input_ids.size for batch in self.batches)


def count_steps(config: TrainConfig, examples: int) -> int:
    """How many steps training on so many examples takes."""
    per_epoch = _divide_up(_divide_up(examples, config.batch_size), config.accumulation)
    total = per_epoch * config.epochs
    return total if config.max_steps is None else min(total, config.max_steps)


def steps(config: TrainConfig, train_set: Sequence[Encoded], pad_id: int) -> Iterator[Step]:
    """The steps of a whole run; an epoch's batches are made when its turn comes."""
    every = (
        step
        for epoch in range(1, config.epochs + 1)
        for step in _steps_of_epoch(config, train_set, pad_id, epoch)
    )
    return islice(every, count_steps(config, len(train_set)))


def _steps_of_epoch(
    config: TrainConfig, train_set: Sequence[Encoded], pad_id: int, epoch: int
) -> Iterator[Step]:
    made = batches(train_set, config.batch_size, pad_id=pad_id, seed=config.seed, epoch=epoch - 1)
    for start in range(0, len(made), config.accumulation):
        end = min(start + config.accumulation, len(made))
        yield Step(
            batches=tuple(made[start:end]),
            epoch=epoch,
            first=start + 1,
            epochs_seen=epoch - 1 + end / len(made),
            ends_epoch=end == len(made),
        )


def _divide_up(count: int, size: int) -> int:
    return -(-count // size)


@dataclass(slots=True)
class Tally:
    """What the steps so far took."""

    tokens: int = 0
    places: int = 0
    seconds: float = 0.0

    def add(self, step: Step, seconds: float) -> None:
        """Count a step that took so long."""
        self.tokens += step.tokens
        self.places += step.places
        self.seconds += seconds

    @property
    def tokens_per_second(self) -> float:
        """Without padding; 0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def padding_share(self) -> float:
        """The share of padding among all tokens; 0 before the first step."""
        return 1 - self.tokens / self.places if self.places else 0.0
