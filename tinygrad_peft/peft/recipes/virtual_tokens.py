"""Settings and checks shared by all methods that prepend virtual tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Never

from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.file_format import FileFormat
from tinygrad_peft.peft.hook_types import Draft

__all__ = ["VirtualConfig", "virtual_objections"]


@dataclass(frozen=True, kw_only=True)
class VirtualConfig(PeftConfig):
    """Settings of a method that prepends virtual tokens, or virtual keys and values, to the text.

    num_virtual_tokens: their number; each takes one of the model's positions.
    token_dim, num_attention_heads, num_layers, num_transformer_submodules: Hugging Face PEFT's
        notes on the model that an adapter was trained on. If given, they must equal the model's.

    `slot` is the seam of the method: "prompt" prepends virtual tokens, which take the first
    positions; "prefix" prepends virtual keys and values.
    """

    slot: ClassVar[Literal["prompt", "prefix"]] = "prompt"
    not_mergeable: ClassVar[str] = "virtual tokens are not weights of the model"
    # PEFT wraps the model once less for these methods, and gives the one module no path.
    file_format: ClassVar[FileFormat[Never]] = FileFormat(
        prefix="base_model", tensor_key=lambda _path, name: name
    )

    num_virtual_tokens: int = 20
    token_dim: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    num_transformer_submodules: int | None = None

    def problems(self) -> list[str]:
        """List wrong numbers of virtual tokens."""
        found = super().problems()
        if self.num_virtual_tokens < 1:
            found.append(f"num_virtual_tokens: expected at least 1, got {self.num_virtual_tokens}")
        return found

    def sizes(self, model: TransformerConfig) -> Mapping[str, int]:
        """Return PEFT's notes on a model."""
        return {
            "token_dim": model.hidden_size,
            "num_attention_heads": model.num_attention_heads,
            "num_layers": model.num_hidden_layers,
            "num_transformer_submodules": 1,
        }


def virtual_objections(draft: Draft, *kinds: type[VirtualConfig]) -> list[str]:
    """List objections to steps of these kinds: a base of other sizes, no room for the text.

    All virtual tokens of the recipe take positions. The objection is to the step that takes the
    last position, whatever methods the others are.
    """
    if not isinstance(draft.model, Transformer):
        return []
    model = draft.model.config
    limit, taken = model.max_position_embeddings, 0
    objections = []
    for step, config in enumerate(draft.recipe):
        if not isinstance(config, VirtualConfig):
            continue
        before, taken = taken, taken + config.num_virtual_tokens
        if not isinstance(config, kinds):
            continue
        objections += [
            f"step {step}: {name}: expected the model's {own}, got {noted}"
            for name, own in config.sizes(model).items()
            if (noted := getattr(config, name)) not in (None, own)
        ]
        if before < limit <= taken:
            objections.append(
                f"step {step}: expected fewer than {limit} virtual tokens (the model's positions), "
                f"to leave room for the text, got {taken}"
            )
    return objections
