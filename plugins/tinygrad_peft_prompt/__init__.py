"""Prompt tuning (Lester et al. 2021) and P-tuning (Liu et al. 2021)."""

from tinygrad_peft_prompt.config import PromptEncoderConfig, PromptTuningConfig
from tinygrad_peft_prompt.layer import PromptEncoder, SoftPrompt

__all__ = ["PromptEncoder", "PromptEncoderConfig", "PromptTuningConfig", "SoftPrompt"]
