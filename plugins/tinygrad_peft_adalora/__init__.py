"""AdaLoRA: a budget of ranks, allocated in training to where it matters (Zhang et al. 2023)."""

from tinygrad_peft_adalora.budget import Budget
from tinygrad_peft_adalora.config import AdaLoraConfig
from tinygrad_peft_adalora.layer import AdaLoraLinear, orthogonality

__all__ = ["AdaLoraConfig", "AdaLoraLinear", "Budget", "orthogonality"]
