import dataclasses
from typing import Any

import pytest

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.nn import RopeScaling, TransformerConfig

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 10,
    "max_position_embeddings": 8,
}


def test_sizes_are_derived_from_others() -> None:
    config = TransformerConfig(**SIZES)

    assert (config.num_key_value_heads, config.head_dim) == (4, 3)


def test_a_head_size_may_differ_from_the_share_of_the_width() -> None:
    config = TransformerConfig(**SIZES | {"head_dim": 8, "num_attention_heads": 5})

    assert config.head_dim == 8
    assert dataclasses.replace(config, head="none") == TransformerConfig(
        **SIZES | {"head_dim": 8, "num_attention_heads": 5, "head": "none"}
    )


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [0, -1])
def test_every_size_is_at_least_one(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1"):
        TransformerConfig(**SIZES | {name: size})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_key_value_heads": 3},
            "num_attention_heads: expected a multiple of 3 kv",
        ),
        ({"num_key_value_heads": -1}, "num_key_value_heads must be at least 1"),
        (
            {"num_attention_heads": 5},
            "hidden_size: expected a multiple of 5 heads, got 12",
        ),
        ({"positions": "rotary"}, "rotary positions need an even head_dim"),
        (
            {"packed_qkv": True, "num_key_value_heads": 2},
            "packed_qkv needs as many key/value heads",
        ),
        ({"gated_mlp": True}, "a gated feed-forward layer needs activation silu"),
        ({"head": "classification"}, "a classification head needs num_labels of at least 1"),
        ({"label_names": ("a", "b"), "num_labels": 3}, "2 label names for num_labels 3"),
        ({"hidden_dropout": 1.0}, "dropout rates are at least 0 and below 1"),
        ({"attention_dropout": -0.1}, "dropout rates are at least 0 and below 1"),
        ({"type_vocab_size": -1}, "type_vocab_size must be at least 0"),
        ({"norm_eps": 0.0}, "norm_eps and rope_theta must be above 0"),
        (
            {"rope_scaling": RopeScaling(rope_type="linear", factor=2.0)},
            "rope_scaling needs rotary positions",
        ),
        (
            {"norm": "layernorm"},
            "norm: expected one of .*'rms_norm'; did you mean 'layer_norm'.*, got 'layernorm'",
        ),
        ({"norm_position": "before"}, "norm_position: expected one of 'pre', 'post', got 'before'"),
        ({"positions": "rope"}, "positions: expected one of 'learned', 'rotary', got 'rope'"),
        ({"activation": "gelu_new"}, "activation: expected one of .* did you mean"),
        ({"head": "lm_head"}, "head: expected one of .*, got 'lm_head'"),
        ({"pooling": "max"}, "pooling: expected one of .*, got 'max'"),
    ],
)
def test_each_invalid_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**SIZES | settings)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        TransformerConfig(**SIZES | {"vocab_size": 0, "hidden_dropout": 2, "norm": "batch"})

    assert str(error.value).splitlines() == [
        "invalid TransformerConfig:",
        "  - norm: expected one of 'layer_norm', 'rms_norm', got 'batch'",
        "  - vocab_size must be at least 1",
        "  - dropout rates are at least 0 and below 1",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rope_type": "yarn", "factor": 2.0},
            "rope_type: expected one of 'linear', 'llama3'.*, got 'yarn'",
        ),
        ({"rope_type": "linear", "factor": 0.0}, "factor must be above 0"),
        (
            {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0},
            "low_freq_factor must be above 0, and high_freq_factor above it",
        ),
        (
            {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 0},
            "original_max_position_embeddings must be at least 1",
        ),
    ],
)
def test_invalid_rope_scaling_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RopeScaling(**settings)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 10_001}, "num_hidden_layers: expected at most 10000, got 10001"),
        ({"head_dim": 100_001}, "head_dim: expected at most 100000, got 100001"),
        (
            {"head": "classification", "num_labels": 10**9},
            "num_labels: expected at most 100000",
        ),
        ({"norm_eps": float("inf")}, "norm_eps and rope_theta must be above 0"),
        ({"rope_theta": float("nan")}, "norm_eps and rope_theta must be above 0"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        TransformerConfig(**SIZES | changes)
