"""Folders of sentence-transformers: a transformer, its pooling, and a Dense with the logits.

    modules.json                   Transformer, Pooling, and Dense or Normalize if there are any
    config.json, model.safetensors the encoder, here or in 0_Transformer
    sentence_bert_config.json      max_seq_length, do_lower_case
    1_Pooling/config.json          cls, mean or last token
    2_Dense                        config.json and model.safetensors: a classifier's logits

SentenceTransformer(folder).encode(texts) of a classifier gives its logits.
"""

from tinygrad_peft.models.sentence_transformers.folder import (
    read_sentence_config,
    read_sentence_model,
    write_sentence_model,
)
from tinygrad_peft.models.sentence_transformers.head import (
    HEAD_FILES,
    checked_head,
    stored_head,
    write_head,
)
from tinygrad_peft.models.sentence_transformers.modules import SentenceModules, read_modules

__all__ = [
    "HEAD_FILES",
    "SentenceModules",
    "checked_head",
    "read_modules",
    "read_sentence_config",
    "read_sentence_model",
    "stored_head",
    "write_head",
    "write_sentence_model",
]
