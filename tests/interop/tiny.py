"""Small models with the same random weights in transformers and here."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from tinygrad_peft import PeftModel, Transformer, load_model, no_grad
from tinygrad_peft.arrays import Array

IDS = np.array([[3, 14, 15, 9, 2], [6, 5, 35, 8, 49]])
SIZES: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def peer(family: str, **settings: Any) -> Any:  # noqa: ANN401 - they have no common type
    torch.manual_seed(0)
    if family == "gpt2":
        config = GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=32, **settings)
        model: Any = GPT2LMHeadModel(config)
    elif family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                **SIZES,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=24,
                max_position_embeddings=32,
                **settings,
            )
        )
    else:
        model = BertForSequenceClassification(
            BertConfig(
                **SIZES,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=32,
                num_labels=3,
            )
        )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def own(base: Path) -> Transformer:
    model = load_model(base)
    model.eval()
    return model


def logits(model: Transformer | PeftModel) -> Array:
    with no_grad():
        return model(IDS).data


def peer_logits(model: Any) -> Array:  # noqa: ANN401
    with torch.no_grad():
        found: Array = model(torch.from_numpy(IDS)).logits.numpy()
        return found


def shaken(peft: PeftModel) -> PeftModel:
    rng = np.random.default_rng(1)
    for parameter in peft.trainable_parameters():
        parameter.data += rng.normal(0, 0.1, parameter.shape).astype(np.float32)
    return peft
