"""What the settings of all methods that put something in front of the tokens have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Never

from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.events import Draft
from tinygrad_peft.peft.file_format import FileFormat

__all__ = ["VirtualConfig", "virtual_objections"]


@dataclass(frozen=True, kw_only=True)
class VirtualConfig(PeftConfig):
    """Settings of a method that puts virtual tokens, or virtual keys and values, before the text.

    num_virtual_tokens: how many, each of which takes one of the model's positions.
    token_dim, num_attention_heads, num_layers, num_transformer_submodules: what Hugging Face PEFT
        notes of the model that an adapter was trained on. They are no choices: where they are
        given, they must be the model's.

    `slot` is the seam in which the method stands: "prompt" puts virtual tokens before the text, so
    that they have the first positions; "prefix" puts virtual keys and values there.
    """

    slot: ClassVar[Literal["prompt", "prefix"]] = "prompt"
    not_mergeable: ClassVar[str] = "virtual tokens are no weights of the model"
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
        """Fewer than one virtual token."""
        found = super().problems()
        if self.num_virtual_tokens < 1:
            found.append(f"num_virtual_tokens={self.num_virtual_tokens} must be at least 1")
        return found

    def sizes(self, model: TransformerConfig) -> Mapping[str, int]:
        """What PEFT notes of such a model."""
        return {
            "token_dim": model.hidden_size,
            "num_attention_heads": model.num_attention_heads,
            "num_layers": model.num_hidden_layers,
            "num_transformer_submodules": 1,
        }


def virtual_objections(draft: Draft, *kinds: type[VirtualConfig]) -> list[str]:
    """What speaks against the steps of these kinds: a base of other sizes, no room for the text.

    All virtual tokens of the recipe take positions. The step that takes the last one is objected
    to, whatever methods the others are.
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
            f"step {step}: the adapter is for a model of {name} {noted}, and this one's is {own}"
            for name, own in config.sizes(model).items()
            if (noted := getattr(config, name)) not in (None, own)
        ]
        if before < limit <= taken:
            objections.append(
                f"step {step}: with it, {taken} virtual tokens leave no room for a text among "
                f"the model's {limit} positions"
            )
    return objections
