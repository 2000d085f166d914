"""A tiny model of each family, on which a method shows that it keeps its promises."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tinygrad_peft.nn import Embedding, Init, Transformer, TransformerConfig

__all__ = ["SMALL_MODELS", "small_model"]

_GPT2 = TransformerConfig(
    model_type="gpt2",
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=96,  # room for two prompts of the usual length
    packed_qkv=True,
)
_LLAMA = TransformerConfig(
    model_type="llama",
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    max_position_embeddings=96,
    norm="rms_norm",
    positions="rotary",
    activation="silu",
    gated_mlp=True,
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
)
_BERT = TransformerConfig(
    model_type="bert",
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=96,
    type_vocab_size=2,
    norm_position="post",
    activation="gelu",
    causal=False,
    head="classification",
    num_labels=3,
    pooler=True,
)
SMALL_MODELS: Mapping[str, TransformerConfig] = MappingProxyType(
    {"gpt2": _GPT2, "llama": _LLAMA, "bert": _BERT}
)


def small_model(
    config: TransformerConfig, dtype: type[np.floating] = np.float32, *, seed: int = 1
) -> Transformer:
    """A model of that shape, always the same one, in evaluation mode.

    Biases and norms are drawn as the weights are, so that a method that forgets one is found out;
    embeddings are large beside the steps of numerical differences.
    """
    model = Transformer(config, Init(seed, dtype))
    init = Init((seed, 1), dtype)
    for _, module in model.named_modules():
        for _, parameter in module.own_parameters():
            if isinstance(module, Embedding):
                parameter.data = init.normal(*parameter.shape, std=0.1)
            elif len(parameter.shape) == 1:
                parameter.data = parameter.data + init.normal(*parameter.shape, std=0.2)
    model.eval()
    return model
