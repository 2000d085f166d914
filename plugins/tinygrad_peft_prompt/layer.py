"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691, section 2).

    transformer([P; embed(tokens)])     [;] joins along the tokens

    P (N, D)  the virtual tokens, the same for every text

They are trained themselves, or, in P-tuning (Liu et al. 2021, arXiv 2103.10385, section 3.2),
computed from others by a network of width h:

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
    """Virtual tokens that are trained themselves, in front of those of the base."""

    base_layer: Prompt

    def __init__(self, base: Prompt, states: Array) -> None:
        """`states` (N, D) is where they start."""
        self.base_layer = base
        self.prompt_embeddings = Parameter(states)  # (N, D)

    def __call__(self) -> VirtualTokens:
        return _in_front(self.prompt_embeddings, self.base_layer)


class PromptEncoder(Module):
    """P-tuning: virtual tokens that a network computes, in front of those of the base."""

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
        return _in_front(self.states(self.dropout), self.base_layer)

    def states(self, drop: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> Tensor:
        """The virtual tokens that are computed, with `drop` on both hidden layers: (N, D)."""
        first, second, last = self.layers
        hidden = drop(F.relu(first(self.embedding)))  # (N, h)
        return last(drop(F.relu(second(hidden))))

    def flattened(self) -> SoftPrompt:
        """The virtual tokens as they are now, to be trained themselves: what PEFT stores."""
        with no_grad():
            return SoftPrompt(self.base_layer, self.states().data)


def _in_front(states: Tensor, base: Prompt) -> VirtualTokens:
    inner = base()
    return VirtualTokens(states) if inner is None else inner.behind(states)
