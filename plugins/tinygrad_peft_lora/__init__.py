"""LoRA: low-rank adaptation of large language models (Hu et al. 2021)."""

from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.dora import DoraLinear
from tinygrad_peft_lora.embedding import DoraEmbedding, LoraEmbedding
from tinygrad_peft_lora.layer import LoraLinear, lora_linear
from tinygrad_peft_lora.residual import ResidualLora
from tinygrad_peft_lora.tokens import TrainedLogits, TrainedTokens

__all__ = [
    "DoraEmbedding",
    "DoraLinear",
    "LoraConfig",
    "LoraEmbedding",
    "LoraLinear",
    "ResidualLora",
    "TrainedLogits",
    "TrainedTokens",
    "lora_linear",
]
