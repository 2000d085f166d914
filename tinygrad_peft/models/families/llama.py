"""Llama checkpoints (Touvron et al. 2023): rotary positions, RMS norm, SwiGLU, grouped queries."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tinygrad_peft.models.families.config_json import (
    ACTIVATIONS,
    Head,
    Settings,
    activation_name,
    read_settings,
)
from tinygrad_peft.models.families.family import Family, Tensors, head_json, with_head
from tinygrad_peft.models.families.paths import PathMap
from tinygrad_peft.nn.config import RopeScaling, TransformerConfig

__all__ = ["LLAMA"]

_ARCHITECTURES: Mapping[str, Head] = {
    "LlamaForCausalLM": "lm",
    "LlamaModel": "none",
    "LlamaForSequenceClassification": "classification",
}
_PATHS = PathMap(
    {
        "embed_tokens": "embed_tokens",
        "blocks": "layers",
        "blocks.#": "layers.#",
        "blocks.#.attn_norm": "layers.#.input_layernorm",
        "blocks.#.attn": "layers.#.self_attn",
        "blocks.#.mlp_norm": "layers.#.post_attention_layernorm",
        "blocks.#.mlp": "layers.#.mlp",
        "final_norm": "norm",
        "lm_head": "lm_head",
        "classifier": "score",
    }
)


@dataclass(frozen=True, kw_only=True)
class _Rope:
    """`rope_scaling`, called `rope_parameters` since transformers 5."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float = 1.0

    @property
    def kind(self) -> str:
        given = self.type if self.rope_type is None else self.rope_type
        return "default" if given is None else given

    def problems(self, key: str) -> list[str]:
        needed = {"default": [], "linear": ["factor"], "llama3": _LLAMA3}.get(self.kind)
        if needed is None:
            known = "default, linear, llama3"
            return [f"{key}: rope type: expected one of {known}, got {self.kind!r}"]
        missing = [name for name in needed if getattr(self, name) is None]
        found = [f"{key}: rope type {self.kind} needs {name}" for name in missing]
        if self.partial_rotary_factor != 1:
            found.append(
                f"{key}: partial_rotary_factor {self.partial_rotary_factor} is not supported"
            )
        return found

    def scaling(self) -> RopeScaling | None:
        names = [field.name for field in dataclasses.fields(RopeScaling)]
        if self.kind == "linear":
            return RopeScaling(
                rope_type="linear", factor=1.0 if self.factor is None else self.factor
            )
        if self.kind == "llama3":
            return RopeScaling(**{name: getattr(self, name) for name in names})
        return None


_LLAMA3 = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]


@dataclass(frozen=True, kw_only=True)
class _Settings(Settings):
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False

    @property
    def rope(self) -> _Rope:
        return self.rope_parameters or self.rope_scaling or _Rope()

    def problems(self, head: Head) -> list[str]:
        key = "rope_parameters" if self.rope_parameters else "rope_scaling"
        return super().problems(head) + self.rope.problems(key)


def _read(raw: Mapping[str, object], tensors: Tensors | None) -> TransformerConfig:
    s, head = read_settings(_Settings, raw, fixed={}, architectures=_ARCHITECTURES)
    config = TransformerConfig(
        model_type="llama",
        vocab_size=s.vocab_size,
        hidden_size=s.hidden_size,
        num_hidden_layers=s.num_hidden_layers,
        num_attention_heads=s.num_attention_heads,
        num_key_value_heads=s.num_key_value_heads or 0,
        head_dim=s.head_dim or 0,
        intermediate_size=s.intermediate_size,
        max_position_embeddings=s.max_position_embeddings,
        norm="rms_norm",
        norm_eps=s.rms_norm_eps,
        positions="rotary",
        rope_theta=s.rope_theta if s.rope.rope_theta is None else s.rope.rope_theta,
        rope_scaling=s.rope.scaling(),
        activation=ACTIVATIONS[s.hidden_act],
        gated_mlp=True,
        attention_bias=s.attention_bias,
        mlp_bias=s.mlp_bias,
        tie_word_embeddings=s.tie_word_embeddings,
        attention_dropout=s.attention_dropout,
    )
    return with_head(config, s, head, tensors, "score.weight")


def _write(config: TransformerConfig) -> dict[str, object]:
    return {
        **head_json(config, "llama", _ARCHITECTURES),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": activation_name(config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_json(config.rope_scaling),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _rope_json(scaling: RopeScaling | None) -> dict[str, object] | None:
    if scaling is not None and scaling.rope_type == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return None if scaling is None else dataclasses.asdict(scaling)


LLAMA = Family(
    model_type="llama",
    prefix="model",
    paths=_PATHS,
    heads=frozenset({"lm_head", "score"}),
    transposed=frozenset(),
    ignored=re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    renamed={},
    architectures=_ARCHITECTURES,
    read=_read,
    write=_write,
)
