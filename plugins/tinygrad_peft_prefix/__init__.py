"""Prefix tuning: optimizing continuous prompts for generation (Li and Liang 2021)."""

from tinygrad_peft_prefix.config import PrefixTuningConfig
from tinygrad_peft_prefix.layer import ProjectedPrefix, TrainedPrefix

__all__ = ["PrefixTuningConfig", "ProjectedPrefix", "TrainedPrefix"]
