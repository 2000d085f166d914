"""Pretrained models and their tokenizers, read from checkpoints and written to them.

`tinygrad_peft.models.fetch` downloads them.
"""

from tinygrad_peft.models.checkpoint import load_config, load_model, refuse_adapter, save_model
from tinygrad_peft.models.companions import copy_companions
from tinygrad_peft.models.families import (
    checkpoint_path,
    config_to_json,
    equal_names,
    is_transposed,
    module_path,
)
from tinygrad_peft.models.hf import (
    SaveDtype,
    TokenizedText,
    Tokenizer,
    load_tokenizer,
)
from tinygrad_peft.models.named_shapes import SHAPES, named_shape

__all__ = [
    "SHAPES",
    "SaveDtype",
    "TokenizedText",
    "Tokenizer",
    "checkpoint_path",
    "config_to_json",
    "copy_companions",
    "equal_names",
    "is_transposed",
    "load_config",
    "load_model",
    "load_tokenizer",
    "module_path",
    "named_shape",
    "refuse_adapter",
    "save_model",
]
