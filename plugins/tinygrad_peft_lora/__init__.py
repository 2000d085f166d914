"""LoRA: low-rank adaptation of large language models (Hu et al. 2021)."""

from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.layer import LoraLinear, lora_linear

__all__ = ["LoraConfig", "LoraLinear", "lora_linear"]
