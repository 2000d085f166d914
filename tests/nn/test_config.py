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


def test_sizes_that_follow_from_others_are_filled_in() -> None:
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
        ({"num_key_value_heads": 3}, "4 attention heads are no multiple of 3 key/value heads"),
        ({"num_key_value_heads": -1}, "num_key_value_heads must be at least 1"),
        ({"num_attention_heads": 5}, "hidden_size 12 is no multiple of 5 attention heads"),
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
            "norm is 'layernorm', expected one of .*'rms_norm'; did you mean 'layer_norm'",
        ),
        ({"norm_position": "before"}, "norm_position is 'before', expected one of 'pre', 'post'"),
        ({"positions": "rope"}, "positions is 'rope', expected one of 'learned', 'rotary'"),
        ({"activation": "gelu_new"}, "activation is 'gelu_new', expected one of .* did you mean"),
        ({"head": "lm_head"}, "head is 'lm_head'"),
        ({"pooling": "max"}, "pooling is 'max'"),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**SIZES | settings)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        TransformerConfig(**SIZES | {"vocab_size": 0, "hidden_dropout": 2, "norm": "batch"})

    assert str(error.value).splitlines() == [
        "this transformer cannot be:",
        "  - norm is 'batch', expected one of 'layer_norm', 'rms_norm'",
        "  - vocab_size must be at least 1",
        "  - dropout rates are at least 0 and below 1",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rope_type": "yarn", "factor": 2.0},
            "rope_type is 'yarn', expected one of 'linear', 'll",
        ),
        ({"rope_type": "linear", "factor": 0.0}, "factor must be above 0"),
        (
            {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0},
            "high_freq_factor must be above low_freq_factor",
        ),
        (
            {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 0},
            "original_max_position_embeddings must be at least 1",
        ),
    ],
)
def test_rope_scaling_that_cannot_be_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RopeScaling(**settings)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 10_001}, "num_hidden_layers 10001 is more than 10000"),
        ({"head_dim": 100_001}, "head_dim 100001 is more than 100000"),
        ({"head": "classification", "num_labels": 10**9}, "num_labels 1000000000 is more than"),
        ({"norm_eps": float("inf")}, "norm_eps and rope_theta must be above 0"),
        ({"rope_theta": float("nan")}, "norm_eps and rope_theta must be above 0"),
    ],
)
def test_what_no_model_has_is_refused_before_it_is_built(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        TransformerConfig(**SIZES | changes)
