"""Models and tokenizers in GGUF files, as llama.cpp writes them."""

from tinygrad_peft.models.gguf.header import read_gguf_header
from tinygrad_peft.models.gguf.model import (
    check_gguf_fit,
    gguf_config,
    read_gguf,
    read_gguf_arrays,
    read_gguf_config,
)
from tinygrad_peft.models.gguf.tokenizer import GgufTokenizer

__all__ = [
    "GgufTokenizer",
    "check_gguf_fit",
    "gguf_config",
    "read_gguf",
    "read_gguf_arrays",
    "read_gguf_config",
    "read_gguf_header",
]
