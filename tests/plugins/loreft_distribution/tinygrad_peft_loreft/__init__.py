"""LoReFT: low-rank interventions on hidden states (Wu et al. 2024, arXiv 2404.03592)."""

from tinygrad_peft_loreft.config import LoreftConfig
from tinygrad_peft_loreft.layer import Intervention, LoreftBlock

__all__ = ["Intervention", "LoreftBlock", "LoreftConfig"]
