"""Pretrained checkpoints, their tokenizers, and where they come from."""

from tinygrad_peft.models.checkpoint import load_config, load_model, save_model
from tinygrad_peft.models.families import checkpoint_path, module_path
from tinygrad_peft.models.tensors import SaveDtype

__all__ = [
    "SaveDtype",
    "checkpoint_path",
    "load_config",
    "load_model",
    "module_path",
    "save_model",
]
