"""One method on one small model, where every test of the suite starts."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, IntArray
from tinygrad_peft.nn import AdamW, Transformer, TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model
from tinygrad_peft.tensor import no_grad
from tinygrad_peft.testing.models import small_model

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A method's config and the small model of a family.

    Every model that it makes has the same weights.
    """

    family: str
    shape: TransformerConfig
    config: PeftConfig
    host: Host

    def __str__(self) -> str:
        return f"{self.config.peft_type.lower()} on {self.family}"

    @property
    def ids(self) -> IntArray:
        """Token ids (2, 5)."""
        return np.random.default_rng(0).integers(0, self.shape.vocab_size, (2, 5))

    @property
    def labels(self) -> IntArray:
        """The labels of `ids` for `Transformer.loss`: classes (2,), or the tokens themselves."""
        return np.arange(2) if self.shape.head == "classification" else self.ids

    @property
    def is_language_model(self) -> bool:
        """True if the model predicts the next token."""
        return self.shape.head == "lm"

    @property
    def dropout_rates(self) -> tuple[str, ...]:
        """The settings of the method with "dropout" in their names."""
        fields = dataclasses.fields(self.config)
        return tuple(field.name for field in fields if "dropout" in field.name)

    def with_dropout(self, rate: float) -> "Case":
        """Set all of the method's dropout rates."""
        if not self.dropout_rates:
            return self
        rates: dict[str, Any] = dict.fromkeys(self.dropout_rates, rate)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **rates))

    def base(self, dtype: type[np.floating] = np.float32) -> Transformer:
        """The model without the method."""
        return small_model(self.shape, dtype)

    def adapt(
        self, model: Transformer, recipe: Sequence[PeftConfig] = (), *, seed: int = 0
    ) -> PeftModel:
        """The method, or a whole recipe, applied to a model, in evaluation mode."""
        peft = get_peft_model(model, recipe or [self.config], seed=seed, host=self.host)
        peft.eval()
        return peft

    def trained(
        self, dtype: type[np.floating] = np.float32, recipe: Sequence[PeftConfig] = ()
    ) -> PeftModel:
        """The method on a model of its own, with weights far from where they started."""
        peft = self.adapt(self.base(dtype), recipe)
        self.shake(peft)
        return peft

    def load(self, directory: Path, model: Transformer | None = None) -> PeftModel:
        """A saved adapter on a model: one of its own, unless it is given."""
        return PeftModel.from_pretrained(model or self.base(), directory, host=self.host)

    def logits(
        self,
        model: Transformer | PeftModel,
        ids: IntArray | None = None,
        mask: BoolArray | None = None,
        prompt_lengths: IntArray | None = None,
    ) -> Array:
        """Run the model on `ids`, or on the case's own."""
        ids = self.ids if ids is None else ids
        with no_grad():
            return model(ids, mask, prompt_lengths=prompt_lengths).data

    def shake(self, peft: PeftModel, *, seed: int = 0) -> None:
        """Move all that is trained, in arrays of its own, as many steps would have done."""
        rng = np.random.default_rng(seed)
        for parameter in peft.trainable_parameters():
            moved = parameter.data + rng.normal(0, 0.2, parameter.shape)
            parameter.data = moved.astype(parameter.dtype)

    def train(self, peft: PeftModel, *, steps: int = 3) -> None:
        """Make a few steps of AdamW on the case's batch."""
        optimizer = AdamW(peft.trainable_parameters(), lr=1e-2, weight_decay=0.0)
        peft.train()
        for _ in range(steps):
            optimizer.zero_grad()
            peft.loss(self.ids, self.labels).backward()
            optimizer.step()
        peft.eval()
