"""Example: y = block(x) + m ⊙ Bᵀ A block(x), at the ends of each prompt.

A (r, D) is random, B (r, D) zero, and m (B, T, 1) is 1 at the first and the last token of the
prompt and at virtual tokens, and 0 elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft import Module, Parameter, Tensor, Transformer, peft
from tinygrad_peft.errors import failures
from tinygrad_peft.nn import BlockLike, Context, Init
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import hookimpl, hookspecs

__all__ = ["ExampleBlock", "ExampleConfig"]


@dataclass(frozen=True, kw_only=True)
class ExampleConfig(peft.PeftConfig):
    """Settings: `r` is the rank, `first` and `last` count tokens at the ends of a prompt."""

    peft_type: ClassVar[str] = "EXAMPLE"
    not_mergeable: ClassVar[str] = "it changes hidden states at some tokens, and not weights"

    r: int = 4
    first: int = 1
    last: int = 1

    def problems(self) -> list[str]:
        """List a rank below 1, and settings that choose no token."""
        wrong = {
            f"r={self.r} must be at least 1": self.r < 1,
            "first and last must not be negative": min(self.first, self.last) < 0,
            "first or last must be above 0": self.first == self.last == 0,
        }
        return [*super().problems(), *failures(wrong)]


class ExampleBlock(Module):
    """A whole layer of the transformer, with its hidden states changed: (B, T, D) -> (B, T, D)."""

    base_layer: BlockLike

    def __init__(
        self,
        base: BlockLike,
        config: ExampleConfig,
        width: int,
        init: Init,
    ) -> None:
        self.base_layer = base
        self.first, self.last = config.first, config.last
        self.a = Parameter(init.normal(config.r, width, std=0.1))
        self.b = Parameter(init.zeros(config.r, width))

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        y = self.base_layer(x, context)
        roles = context.roles
        chosen = roles.first(self.first) | roles.last(self.last) | roles.virtual  # (B, T)
        return y + Tensor(chosen[..., None].astype(y.dtype)) * self.change(y)

    def change(self, h: Tensor) -> Tensor:
        """Bᵀ A h: (B, T, D) -> (B, T, D)."""
        # ---- The formula, of the hidden states h at each token.
        return F.linear(h, self.a) @ self.b


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    """Provide the method."""
    return [ExampleConfig]


@hookimpl(hookspecs.adapt_module, ExampleConfig)
def adapt_module(config: ExampleConfig, site: peft.Site) -> Module | None:
    """Wrap every layer of the transformer."""
    model, block = site.model, site.module
    if site.slot != "blocks" or not isinstance(model, Transformer):
        return None
    if not isinstance(block, BlockLike):
        return None
    return ExampleBlock(block, config, model.config.hidden_size, site.init)


@hookimpl(hookspecs.count_parameters, ExampleConfig)
def count_parameters(
    config: ExampleConfig,
    shape: peft.ModelShape,
) -> peft.ParameterCount:
    """2 r D per layer."""
    count = shape.config.num_hidden_layers * 2 * config.r * shape.config.hidden_size
    return peft.ParameterCount(trainable=count, added=count)
