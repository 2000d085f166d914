"""Where the virtual tokens of a new prompt start."""

from pathlib import Path

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import load_tokenizer
from tinygrad_peft.nn import Init, TokenEmbedding
from tinygrad_peft.tensor import no_grad
from tinygrad_peft_prompt.config import PromptTuningConfig

__all__ = ["first_states"]

# Enough to know each feature's mean and spread to two digits, and little memory.
SAMPLE = 4096


def first_states(config: PromptTuningConfig, embed: TokenEmbedding, init: Init) -> Array:
    """The vectors (N, D) that a prompt starts with.

    Raises:
        CheckpointError: no tokenizer where the config says that one is.
        MissingExtraError: a tokenizer is needed, and the `text` extra is not installed.
        ConfigError: a text without tokens.
        TokenError: a text with tokens that the model does not have.
    """
    count = config.num_virtual_tokens
    if config.prompt_tuning_init == "TEXT":
        return _embedded(embed, np.resize(_text_ids(config), count), init)
    shuffled = init.rng.permutation(embed.num_embeddings)
    if config.prompt_tuning_init == "SAMPLE_VOCAB":
        return _embedded(embed, np.resize(shuffled, count), init)
    return _like(_embedded(embed, shuffled[:SAMPLE], init), count, init)


def _like(embeddings: Array, count: int, init: Init) -> Array:
    """N(μ, σ²) with the mean and the spread of each feature: (V, D) -> (count, D).

    N(0, 1), as Hugging Face PEFT draws, is several times longer than any token of a usual model:
    what attention adds to such a vector hardly turns it, and neither does a step of training. A
    vector of the tokens' own size is processed and moved as a token is.
    """
    noise = init.normal(count, embeddings.shape[1], std=1.0)
    states: Array = embeddings.mean(axis=0) + embeddings.std(axis=0) * noise
    return states


def _text_ids(config: PromptTuningConfig) -> IntArray:
    """The tokens of the text, with those that the tokenizer puts around every text."""
    source = Path(str(config.tokenizer_name_or_path))
    ids = load_tokenizer(source).encode(str(config.prompt_tuning_init_text))
    if not ids:
        raise ConfigError(
            f"prompt_tuning_init_text={config.prompt_tuning_init_text!r} has no tokens"
        )
    return np.array(ids)


def _embedded(embed: TokenEmbedding, ids: IntArray, init: Init) -> Array:
    """What the model makes of tokens, by whatever method its embedding is wrapped: (N, D)."""
    with no_grad():
        states: Array = embed(ids[None]).data[0].astype(init.dtype)
    return states
