"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691, section 2).

    y = [P; x]        along the tokens

    x (B, T, d)   the embeddings of the tokens
    P (n, d)      the prompt, the same for all rows of a batch

With g (B, n + T, d) the gradient of y:

    dP = Σ over the batch of g's first n tokens        (n, d)
    dx = g's other tokens                              (B, T, d)
"""

import numpy as np

from tinygrad_peft.reference._basics import (
    Array,
    check_shape,
    check_sizes,
    check_width,
    generator,
    normal,
)

__all__ = ["PromptTuning"]


class PromptTuning:
    """Trained embeddings in front of a text's: `prompt` (prompt_length, d_model).

    init_from_vocab: embeddings (V, d_model), of which the prompt starts as a random sample; left
        out, it starts as N(0, 0.02²).

    `backward` leaves prompt_grad, which is zero before it.

    Raises:
        ValueError: a size below 1, or embeddings of another width.
    """

    def __init__(
        self,
        d_model: int,
        prompt_length: int = 20,
        init_from_vocab: Array | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes(d_model=d_model, prompt_length=prompt_length)
        rng = generator(rng)
        self.d_model, self.prompt_length = d_model, prompt_length
        if init_from_vocab is None:
            self.prompt = normal(rng, prompt_length, d_model)
        else:
            check_width("init_from_vocab", init_from_vocab, d_model)
            self.prompt = init_from_vocab[rng.integers(len(init_from_vocab), size=prompt_length)]
        self.prompt_grad: Array = np.zeros_like(self.prompt)

    def forward(self, input_embeddings: Array) -> Array:
        """(B, T, d_model) -> (B, prompt_length + T, d_model)."""
        check_shape(
            "input_embeddings", input_embeddings, (*input_embeddings.shape[:2], self.d_model)
        )
        prompts = np.broadcast_to(self.prompt, (len(input_embeddings), *self.prompt.shape))
        # y = [P; x]
        return np.concatenate([prompts, input_embeddings], axis=1)

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the embeddings: (B, prompt_length + T, d_model) -> (B, T, d_model)."""
        # dP = Σ g's first n tokens
        self.prompt_grad = grad_output[:, : self.prompt_length].sum(axis=0)
        # dx = g's other tokens
        return grad_output[:, self.prompt_length :]

    def num_parameters(self) -> int:
        """n d."""
        return self.prompt.size
