"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691, section 2).

    transformer([P; embed(tokens)])     [;] joins along the tokens

    P (N, D)  the virtual tokens, the same for every text

They are trained directly, or, in P-tuning (Liu et al. 2021, arXiv 2103.10385, section 3.2),
reparameterised by a network of width h:

    P = relu(relu(E W₁ᵀ + b₁) W₂ᵀ + b₂) W₃ᵀ + b₃        E (N, D),  W₁ (h, D),  W₂ (h, h),  W₃ (D, h)

A language model predicts a text's first token from the last virtual token.
"""

from collections.abc import Callable

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Dropout, Init, Linear, Module, Parameter, Prompt, VirtualTokens
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_prompt.config import PromptEncoderConfig

__all__ = ["PromptEncoder", "SoftPrompt"]


class SoftPrompt(Module):
    """Virtual tokens that are trained directly, in front of the base's."""

    base_layer: Prompt

    def __init__(self, base: Prompt, states: Array) -> None:
        """Start from `states` (N, D)."""
        self.base_layer = base
        self.prompt_embeddings = Parameter(states)  # (N, D)

    def __call__(self) -> VirtualTokens:
        return _prepended(self.prompt_embeddings, self.base_layer)


class PromptEncoder(Module):
    """P-tuning: virtual tokens reparameterised by a network, in front of the base's."""

    base_layer: Prompt

    def __init__(self, base: Prompt, config: PromptEncoderConfig, size: int, init: Init) -> None:
        """`size` is D, the model's width."""
        tokens, hidden = config.num_virtual_tokens, config.encoder_hidden_size or size
        self.base_layer = base
        self.embedding = Parameter(init.normal(tokens, size, std=1.0))  # (N, D)
        self.layers = [
            Linear(size, hidden, init=init),
            Linear(hidden, hidden, init=init),
            Linear(hidden, size, init=init),
        ]
        self.dropout = Dropout(config.encoder_dropout)
        self.dropout.rng = init.rng

    def __call__(self) -> VirtualTokens:
        return _prepended(self.states(self.dropout), self.base_layer)

    def states(self, drop: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> Tensor:
        """Compute the virtual tokens (N, D), with `drop` on both hidden layers."""
        first, second, last = self.layers
        hidden = drop(F.relu(first(self.embedding)))  # (N, h)
        return last(drop(F.relu(second(hidden))))

    def flattened(self) -> SoftPrompt:
        """Return the current virtual tokens without the network, as PEFT stores them."""
        with no_grad():
            return SoftPrompt(self.base_layer, self.states().data)


def _prepended(states: Tensor, base: Prompt) -> VirtualTokens:
    inner = base()
    return VirtualTokens(states) if inner is None else inner.behind(states)
