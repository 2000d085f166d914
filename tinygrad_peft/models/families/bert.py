"""BERT checkpoints (Devlin et al. 2019): bidirectional, norms after the residual, segments."""

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

__all__ = ["BERT"]

# The pretraining heads of the last two are ignored.
_ARCHITECTURES: Mapping[str, Head] = {
    "BertModel": "none",
    "BertForSequenceClassification": "classification",
    "BertForMaskedLM": "none",
    "BertForPreTraining": "none",
}
_FIXED: Mapping[str, object] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_PATHS = PathMap(
    {
        "embed_tokens": "embeddings.word_embeddings",
        "embed_positions": "embeddings.position_embeddings",
        "embed_types": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
        "dropout": "embeddings.dropout",
        "blocks": "encoder.layer",
        "blocks.#": "encoder.layer.#",
        "blocks.#.attn": "encoder.layer.#.attention",
        "blocks.#.attn.q_proj": "encoder.layer.#.attention.self.query",
        "blocks.#.attn.k_proj": "encoder.layer.#.attention.self.key",
        "blocks.#.attn.v_proj": "encoder.layer.#.attention.self.value",
        "blocks.#.attn.o_proj": "encoder.layer.#.attention.output.dense",
        "blocks.#.attn.dropout": "encoder.layer.#.attention.self.dropout",
        "blocks.#.attn_norm": "encoder.layer.#.attention.output.LayerNorm",
        "blocks.#.mlp": "encoder.layer.#.mlp",
        "blocks.#.mlp.up_proj": "encoder.layer.#.intermediate.dense",
        "blocks.#.mlp.down_proj": "encoder.layer.#.output.dense",
        "blocks.#.mlp_norm": "encoder.layer.#.output.LayerNorm",
        "pooler": "pooler.dense",
        "classifier": "classifier",
    }
)


@dataclass(frozen=True, kw_only=True)
class _Settings(Settings):
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None


def _read(raw: Mapping[str, object], tensors: Tensors | None) -> TransformerConfig:
    s, head = read_settings(_Settings, raw, fixed=_FIXED, architectures=_ARCHITECTURES)
    config = TransformerConfig(
        model_type="bert",
        vocab_size=s.vocab_size,
        hidden_size=s.hidden_size,
        num_hidden_layers=s.num_hidden_layers,
        num_attention_heads=s.num_attention_heads,
        intermediate_size=s.intermediate_size,
        max_position_embeddings=s.max_position_embeddings,
        type_vocab_size=s.type_vocab_size,
        norm_position="post",
        norm_eps=s.layer_norm_eps,
        activation=ACTIVATIONS[s.hidden_act],
        causal=False,
        head="none",
        pooler=_has_pooler(s, head, tensors),
        hidden_dropout=s.hidden_dropout_prob,
        attention_dropout=s.attention_probs_dropout_prob,
        classifier_dropout=s.classifier_dropout,
    )
    return with_head(config, s, head, tensors, "classifier.weight")


def _has_pooler(settings: Settings, head: Head, tensors: Tensors | None) -> bool:
    """Tell whether the file has a pooler; transformers' own classifier always has one."""
    if tensors is None or (head == "classification" and not settings.classifier_pooling):
        return True
    return any(name.startswith("pooler.") for name in tensors)


def _write(config: TransformerConfig) -> dict[str, object]:
    return {
        **head_json(config, "bert", _ARCHITECTURES),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "hidden_act": activation_name(config.activation),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.classifier_dropout,
    }


BERT = Family(
    model_type="bert",
    prefix="bert",
    paths=_PATHS,
    heads=frozenset({"classifier"}),
    transposed=frozenset(),
    ignored=re.compile(r"embeddings\.position_ids|cls\..*"),
    renamed={"gamma": "weight", "beta": "bias"},
    architectures=_ARCHITECTURES,
    read=_read,
    write=_write,
)
