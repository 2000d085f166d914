"""GPT-2 checkpoints (Radford et al. 2019): q, k and v in one projection, weights (in, out)."""

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
from tinygrad_peft.nn.config import TransformerConfig

__all__ = ["GPT2"]

_ARCHITECTURES: Mapping[str, Head] = {
    "GPT2LMHeadModel": "lm",
    "GPT2Model": "none",
    "GPT2ForSequenceClassification": "classification",
}
_FIXED: Mapping[str, object] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
_PATHS = PathMap(
    {
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "dropout": "drop",
        "blocks": "h",
        "blocks.#": "h.#",
        "blocks.#.attn_norm": "h.#.ln_1",
        "blocks.#.attn": "h.#.attn",
        "blocks.#.attn.qkv_proj": "h.#.attn.c_attn",
        "blocks.#.attn.o_proj": "h.#.attn.c_proj",
        "blocks.#.mlp_norm": "h.#.ln_2",
        "blocks.#.mlp": "h.#.mlp",
        "blocks.#.mlp.up_proj": "h.#.mlp.c_fc",
        "blocks.#.mlp.down_proj": "h.#.mlp.c_proj",
        "final_norm": "ln_f",
        "lm_head": "lm_head",
        "classifier": "score",
    }
)


@dataclass(frozen=True, kw_only=True)
class _Settings(Settings):
    n_embd: int
    n_layer: int
    n_head: int
    n_positions: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    tie_word_embeddings: bool = True


def _read(raw: Mapping[str, object], tensors: Tensors | None) -> TransformerConfig:
    s, head = read_settings(_Settings, raw, fixed=_FIXED, architectures=_ARCHITECTURES)
    config = TransformerConfig(
        model_type="gpt2",
        vocab_size=s.vocab_size,
        hidden_size=s.n_embd,
        num_hidden_layers=s.n_layer,
        num_attention_heads=s.n_head,
        intermediate_size=s.n_inner or 4 * s.n_embd,
        max_position_embeddings=s.n_positions,
        norm_eps=s.layer_norm_epsilon,
        activation=ACTIVATIONS[s.activation_function],
        packed_qkv=True,
        tie_word_embeddings=s.tie_word_embeddings,
        hidden_dropout=s.resid_pdrop,
        attention_dropout=s.attn_pdrop,
        embedding_dropout=None if s.embd_pdrop == s.resid_pdrop else s.embd_pdrop,
    )
    return with_head(config, s, head, tensors, "score.weight")


def _write(config: TransformerConfig) -> dict[str, object]:
    return {
        **head_json(config, "gpt2", _ARCHITECTURES),
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "n_inner": config.intermediate_size,
        "activation_function": activation_name(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.hidden_dropout,
        "embd_pdrop": config.embedding_rate,
        "attn_pdrop": config.attention_dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


GPT2 = Family(
    model_type="gpt2",
    prefix="transformer",
    paths=_PATHS,
    heads=frozenset({"lm_head", "score"}),
    transposed=frozenset({"c_attn", "c_proj", "c_fc"}),
    ignored=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
    renamed={},
    architectures=_ARCHITECTURES,
    read=_read,
    write=_write,
)
