"""Pretrained checkpoints, their tokenizers, and where they come from."""

from tinygrad_peft.models.checkpoint import load_config, load_model, save_model
from tinygrad_peft.models.families import checkpoint_path, module_path

__all__ = ["checkpoint_path", "load_config", "load_model", "module_path", "save_model"]
