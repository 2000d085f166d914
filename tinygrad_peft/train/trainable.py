"""The protocols of training: a model to train, and an object with arrays to save."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from tinygrad_peft.arrays import AnyArray, BoolArray, IntArray
from tinygrad_peft.nn.module import Module, Parameter
from tinygrad_peft.tensor import Tensor

__all__ = ["Stateful", "Trainable"]


class Trainable(Protocol):
    """A Transformer, adapted or not, or any other object with these methods."""

    def __call__(
        self, input_ids: IntArray, attention_mask: BoolArray | IntArray | None = None
    ) -> Tensor:
        """Map ids (B, T) to class logits (B, C); not used for a language model."""
        ...

    def loss(
        self,
        input_ids: IntArray,
        labels: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Return the mean over the labels (B,) or (B, T) that are not -100: a scalar."""
        ...

    def parameters(self) -> Iterator[Parameter]:
        """Yield all weights, each once; those that require a gradient are trained."""
        ...

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules with their paths, the outermost first."""
        ...

    def train(self) -> None:
        """Switch dropout on."""
        ...

    def eval(self) -> None:
        """Switch dropout off."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """An object with arrays to save and restore, as modules and optimisers are."""

    def state_dict(self) -> Mapping[str, AnyArray]:
        """Return the arrays by name."""
        ...

    def load_state_dict(self, state: Mapping[str, AnyArray], /) -> None:
        """Take over what `state_dict` gave. Raises CheckpointError if it does not fit."""
        ...
