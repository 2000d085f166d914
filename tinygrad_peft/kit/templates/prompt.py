"""Example: transformer([P; embed(tokens)]), with P = s E trained through E (N, D).

[;] joins along the tokens: N virtual tokens stand in front of every text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft import Module, Parameter, Tensor, Transformer, peft
from tinygrad_peft.errors import failures
from tinygrad_peft.nn import Init, Prompt, VirtualTokens
from tinygrad_peft.peft import hookimpl, hookspecs

__all__ = ["ExampleConfig", "ExamplePrompt"]


@dataclass(frozen=True, kw_only=True)
class ExampleConfig(peft.VirtualConfig):
    """Settings: `num_virtual_tokens` is N, `scale` is s, a factor of the vectors."""

    peft_type: ClassVar[str] = "EXAMPLE"

    num_virtual_tokens: int = 8
    scale: float = 1.0

    def problems(self) -> list[str]:
        """List a scale that is not positive."""
        wrong = {f"scale={self.scale} must be above 0": self.scale <= 0}
        return [*super().problems(), *failures(wrong)]


class ExamplePrompt(Module):
    """The virtual tokens of the method, in front of those of the base."""

    base_layer: Prompt

    def __init__(
        self,
        base: Prompt,
        config: ExampleConfig,
        width: int,
        init: Init,
    ) -> None:
        self.base_layer = base
        self.scale = config.scale
        self.e = Parameter(init.normal(config.num_virtual_tokens, width, std=0.1))

    def __call__(self) -> VirtualTokens:
        inner = self.base_layer()
        return VirtualTokens(self.states()) if inner is None else inner.behind(self.states())

    def states(self) -> Tensor:
        """s E (N, D), in the space of the embedded tokens."""
        # ---- The formula.
        return self.e * self.scale


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    """Provide the method."""
    return [ExampleConfig]


@hookimpl(hookspecs.adapt_module, ExampleConfig)
def adapt_module(config: ExampleConfig, site: peft.Site) -> Module | None:
    """Put the virtual tokens in the transformer's place for them."""
    model, base = site.model, site.module
    if not isinstance(model, Transformer) or base is not model.get_child("prompt"):
        return None
    if not isinstance(base, Prompt):
        return None
    return ExamplePrompt(base, config, model.config.hidden_size, site.init)


@hookimpl(hookspecs.count_parameters, ExampleConfig)
def count_parameters(
    config: ExampleConfig,
    shape: peft.ModelShape,
) -> peft.ParameterCount:
    """N D."""
    count = config.num_virtual_tokens * shape.config.hidden_size
    return peft.ParameterCount(trainable=count, added=count)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: peft.Draft) -> Sequence[str]:
    """Object to a base of other sizes, and to more virtual tokens than it has positions."""
    return peft.virtual_objections(draft, ExampleConfig)
