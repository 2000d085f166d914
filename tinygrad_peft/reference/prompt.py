"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691, section 2).

    y = [P; x]        along the tokens

    x (B, T, d)   the embeddings of the tokens; without a batch, (T, d)
    P (n, d)      the prompt, the same for all rows of a batch

With g (B, n + T, d) the gradient of y:

    dP = Σ over the batch of g's first n tokens        (n, d)
    dx = g's other tokens                              (B, T, d)
"""

import numpy as np

from tinygrad_peft.reference._basics import (
    Array,
    check_sizes,
    check_tokens,
    check_width,
    generator,
    normal,
    over_batch,
)

__all__ = ["PromptTuning"]


class PromptTuning:
    """Trained embeddings in front of a text's: `prompt` (prompt_length, d_model).

    init_from_vocab: embeddings (V, d_model); the prompt starts as randomly chosen rows. Without
        it, the prompt starts as N(0, 0.01²).
    rng: source of the start; NumPy's global generator by default.

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
        draws = generator(rng)
        self.d_model, self.prompt_length = d_model, prompt_length
        if init_from_vocab is None:
            self.prompt = normal(draws, prompt_length, d_model, std=0.01)
        else:
            check_width("init_from_vocab", init_from_vocab, d_model)
            self.prompt = init_from_vocab[draws.choice(len(init_from_vocab), prompt_length)]
        self.prompt_grad: Array = np.zeros_like(self.prompt)

    def forward(
        self, input_embeddings: Array | None = None, *, input_embeds: Array | None = None
    ) -> Array:
        """Prepend the prompt: (..., T, d_model) -> (..., prompt_length + T, d_model).

        The course names the embeddings either way; give them under one name.

        Raises:
            ValueError: no embeddings, both names, another width, or an axis that is missing.
        """
        x = _the_one(input_embeddings, input_embeds)
        check_tokens("input_embeddings", x, self.d_model)
        prompts = np.broadcast_to(self.prompt, (*x.shape[:-2], *self.prompt.shape))
        # y = [P; x]
        return np.concatenate([prompts, x], axis=-2)

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of x: (..., prompt_length + T, d_model) -> (..., T, d_model)."""
        n = self.prompt_length
        # dP = Σ g's first n tokens
        self.prompt_grad = over_batch(grad_output[..., :n, :], 2)
        # dx = g's other tokens
        return grad_output[..., n:, :]

    def parameters(self) -> list[Array]:
        """Return [prompt]."""
        return [self.prompt]

    def gradients(self) -> list[Array]:
        """Return [the gradient of prompt]."""
        return [self.prompt_grad]

    def num_parameters(self) -> int:
        """Return n d."""
        return self.prompt.size


def _the_one(input_embeddings: Array | None, input_embeds: Array | None) -> Array:
    """Return the embeddings under the name that they were given."""
    given = [x for x in (input_embeddings, input_embeds) if x is not None]
    if len(given) != 1:
        raise ValueError(f"expected input_embeddings or input_embeds, got {len(given)} of the two")
    return given[0]
