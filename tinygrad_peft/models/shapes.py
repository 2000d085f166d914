"""Named shapes, for counting, benchmarks and examples: no weights."""

import dataclasses
from collections.abc import Mapping

from tinygrad_peft.errors import ConfigError, nearest
from tinygrad_peft.models.families import config_from_json
from tinygrad_peft.nn.config import TransformerConfig

__all__ = ["SHAPES", "named_shape"]


def named_shape(name: str) -> TransformerConfig:
    """The config of that name in `SHAPES`. Raises ConfigError with the nearest names."""
    if name not in SHAPES:
        raise ConfigError(
            f"unknown shape {name!r}{nearest(name, SHAPES)}; known are {', '.join(SHAPES)}"
        )
    return SHAPES[name]


def _gpt2(hidden: int, layers: int, heads: int) -> TransformerConfig:
    return config_from_json(
        {
            "model_type": "gpt2",
            "vocab_size": 50_257,
            "n_embd": hidden,
            "n_layer": layers,
            "n_head": heads,
            "n_positions": 1024,
        }
    )


def _bert(hidden: int, layers: int, heads: int, **more: object) -> TransformerConfig:
    return config_from_json(
        {
            "model_type": "bert",
            "vocab_size": 30_522,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
            "max_position_embeddings": 512,
            **more,
        }
    )


def _roberta(hidden: int, layers: int, heads: int) -> TransformerConfig:
    """BERT but for the vocabulary, and positions that start at 2."""
    return _bert(
        hidden,
        layers,
        heads,
        vocab_size=50_265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )


def _llama(
    hidden: int, layers: int, heads: int, inner: int, context: int, **more: object
) -> TransformerConfig:
    return config_from_json(
        {
            "model_type": "llama",
            "vocab_size": 32_000,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            **more,
        }
    )


def _llama3(
    hidden: int, layers: int, heads: int, inner: int, context: int, **more: object
) -> TransformerConfig:
    return _llama(
        hidden,
        layers,
        heads,
        inner,
        context,
        vocab_size=128_256,
        num_key_value_heads=8,
        rope_theta=500_000.0,
        **more,
    )


# Llama 3.2 stretches the 8,192 positions that Llama 3 was trained on.
_LONG: Mapping[str, object] = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

SHAPES: Mapping[str, TransformerConfig] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "roberta-base": _roberta(768, 12, 12),
    "roberta-large": _roberta(1024, 24, 16),
    "minilm-l6": _bert(384, 6, 12),
    "smollm2-135m": _llama(
        *(576, 30, 9, 1536, 8192),
        vocab_size=49_152,
        num_key_value_heads=3,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
    ),
    "llama-7b": _llama(4096, 32, 32, 11_008, 2048, rms_norm_eps=1e-6),
    "llama-13b": _llama(5120, 40, 40, 13_824, 2048, rms_norm_eps=1e-6),
    "llama-70b": _llama(8192, 80, 64, 28_672, 4096, num_key_value_heads=8),
    "llama-3.2-1b": _llama3(
        2048, 16, 32, 8192, 131_072, tie_word_embeddings=True, rope_scaling=_LONG
    ),
    "llama-3.2-3b": _llama3(
        3072, 28, 24, 8192, 131_072, tie_word_embeddings=True, rope_scaling=_LONG
    ),
    "llama-3-8b": _llama3(4096, 32, 32, 14_336, 8192),
    # What the examples of the documents run on.
    "small-llama": _llama(32, 2, 4, 64, 64, vocab_size=100, tie_word_embeddings=True),
    "small-bert": dataclasses.replace(
        _bert(
            *(32, 2, 4),
            vocab_size=100,
            intermediate_size=64,
            max_position_embeddings=64,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        pooler=False,
    ),
}
