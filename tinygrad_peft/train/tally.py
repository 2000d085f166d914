"""Tokens, padding and time of the steps so far."""

from collections.abc import Iterable
from dataclasses import dataclass

from tinygrad_peft.train.batching import Batch

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Tokens, places in the batches (tokens and padding) and seconds."""

    tokens: int = 0
    places: int = 0
    seconds: float = 0.0

    def add(self, batches: Iterable[Batch], seconds: float) -> None:
        """Count the batches of a step, and the time that it took."""
        for batch in batches:
            self.tokens += batch.num_tokens
            self.places += batch.input_ids.size
        self.seconds += seconds

    @property
    def tokens_per_second(self) -> float:
        """The speed without padding; 0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def padding_share(self) -> float:
        """The share of padding among all places; 0 before the first step."""
        return 1 - self.tokens / self.places if self.places else 0.0
