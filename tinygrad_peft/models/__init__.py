"""Pretrained checkpoints, their tokenizers, and where they come from."""

from tinygrad_peft.models.checkpoint import load_config, load_model, save_model
from tinygrad_peft.models.families import (
    checkpoint_path,
    config_to_json,
    is_transposed,
    module_path,
)
from tinygrad_peft.models.shapes import SHAPES, named_shape
from tinygrad_peft.models.tensors import SaveDtype

__all__ = [
    "SHAPES",
    "SaveDtype",
    "checkpoint_path",
    "config_to_json",
    "is_transposed",
    "load_config",
    "load_model",
    "module_path",
    "named_shape",
    "save_model",
]
