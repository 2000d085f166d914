"""Checkpoints in Hugging Face layout: config.json, safetensors, tokenizer.json."""

from tinygrad_peft.models.hf.folder import (
    check_fit,
    encoder_folder,
    read_config,
    read_model,
    read_tensors,
    write_model,
)
from tinygrad_peft.models.hf.safetensors import (
    FLOATS,
    SaveDtype,
    StoredTensor,
    read_header,
    write_tensors,
)
from tinygrad_peft.models.hf.tokenized import TokenizedText
from tinygrad_peft.models.hf.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "FLOATS",
    "SaveDtype",
    "StoredTensor",
    "TokenizedText",
    "Tokenizer",
    "check_fit",
    "encoder_folder",
    "load_tokenizer",
    "read_config",
    "read_header",
    "read_model",
    "read_tensors",
    "write_model",
    "write_tensors",
]
