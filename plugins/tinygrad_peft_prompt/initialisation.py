"""Initialisation of a new prompt's virtual tokens."""

from pathlib import Path

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import load_tokenizer
from tinygrad_peft.nn import Init, TokenEmbedding
from tinygrad_peft.tensor import no_grad
from tinygrad_peft_prompt.config import PromptTuningConfig

__all__ = ["first_states"]

# Enough for two digits of each feature's mean and standard deviation, in little memory.
SAMPLE = 4096


def first_states(config: PromptTuningConfig, embed: TokenEmbedding, init: Init) -> Array:
    """Initialise the vectors (N, D) of a prompt.

    Raises:
        CheckpointError: the config's path has no tokenizer.
        MissingExtraError: a tokenizer is needed without the `text` extra.
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
    """Draw N(μ, σ²) with each feature's mean and deviation: (V, D) -> (count, D).

    Hugging Face PEFT draws N(0, 1): vectors several times longer than any token of a usual model,
    which neither attention nor a step of training turns by much. Vectors of the tokens' own size
    behave like tokens.
    """
    noise = init.normal(count, embeddings.shape[1], std=1.0)
    states: Array = embeddings.mean(axis=0) + embeddings.std(axis=0) * noise
    return states


def _text_ids(config: PromptTuningConfig) -> IntArray:
    """Tokenise the text, with the special tokens around it."""
    source = Path(str(config.tokenizer_name_or_path))
    ids = load_tokenizer(source).encode(str(config.prompt_tuning_init_text))
    if not ids:
        raise ConfigError(
            f"prompt_tuning_init_text={config.prompt_tuning_init_text!r} must have tokens"
        )
    return np.array(ids)


def _embedded(embed: TokenEmbedding, ids: IntArray, init: Init) -> Array:
    """Embed tokens as the model does, through any wrappers: (N, D)."""
    with no_grad():
        states: Array = embed(ids[None]).data[0].astype(init.dtype)
    return states
