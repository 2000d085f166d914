"""(IA)³: infused adapters by inhibiting and amplifying inner activations (Liu et al. 2022)."""

from tinygrad_peft_ia3.config import IA3Config
from tinygrad_peft_ia3.layer import IA3Linear

__all__ = ["IA3Config", "IA3Linear"]
