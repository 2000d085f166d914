"""Prefix tuning's settings, with the names and meanings that Hugging Face PEFT gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Never

from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import FileFormat, VirtualConfig

__all__ = ["PrefixTuningConfig"]


@dataclass(frozen=True, kw_only=True)
class PrefixTuningConfig(VirtualConfig):
    """Trained keys and values in front of every attention layer's own.

    num_virtual_tokens: the length of the prefix.
    prefix_projection: reparameterise the prefix by a small network.
    encoder_hidden_size: the width of the network; None for the width of the keys.
    init_weights: None for a random prefix; "zero" for zeros. Neither starts as the base: a zero key
        still takes its share of every softmax. Without prefix_projection, equal virtual tokens get
        equal gradients, so "zero" trains copies of one virtual token.
    """

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    learning_rate: ClassVar[float | None] = 1e-2
    slot: ClassVar[Literal["prompt", "prefix"]] = "prefix"
    file_format: ClassVar[FileFormat[Never]] = replace(
        VirtualConfig.file_format, training_settings=("encoder_hidden_size", "init_weights")
    )

    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: Literal["zero"] | None = None

    def problems(self) -> list[str]:
        """List a width below one."""
        found = super().problems()
        if self.encoder_hidden_size is not None and self.encoder_hidden_size < 1:
            found.append(f"encoder_hidden_size={self.encoder_hidden_size} must be at least 1")
        return found

    def sizes(self, model: TransformerConfig) -> Mapping[str, int]:
        """Return the sizes in PEFT's settings: here, the key/value heads and their width."""
        heads = model.num_key_value_heads
        return {
            **super().sizes(model),
            "token_dim": heads * model.head_dim,
            "num_attention_heads": heads,
        }
