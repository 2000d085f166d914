"""LN tuning: the norms of a transformer, trained (Zhao et al. 2023)."""

from tinygrad_peft_ln_tuning.config import LNTuningConfig

__all__ = ["LNTuningConfig"]
