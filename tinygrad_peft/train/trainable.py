"""What training and evaluation ask of a model."""

from collections.abc import Iterator
from typing import Protocol

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.nn.module import Module, Parameter
from tinygrad_peft.tensor import Tensor

__all__ = ["Trainable"]


class Trainable(Protocol):
    """A Transformer, adapted or not, or whatever else has these methods."""

    def __call__(
        self, input_ids: IntArray, attention_mask: BoolArray | IntArray | None = None
    ) -> Tensor:
        """Ids (B, T) -> class logits (B, C); of a language model it is not used."""
        ...

    def loss(
        self,
        input_ids: IntArray,
        labels: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The mean over the labels (B,) or (B, T) that are not -100: a scalar."""
        ...

    def parameters(self) -> Iterator[Parameter]:
        """All weights, each once; those that require a gradient are trained."""
        ...

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """The modules with their paths, the outermost first."""
        ...

    def train(self) -> None:
        """Switch dropout on."""
        ...

    def eval(self) -> None:
        """Switch dropout off."""
        ...
