"""VeRA: vector-based random matrix adaptation (Kopiczko et al. 2024)."""

from tinygrad_peft_vera.config import VeraConfig
from tinygrad_peft_vera.layer import VeraLinear, vera_update
from tinygrad_peft_vera.projection import DrawnProjection, StoredProjection, drawn_uniform

__all__ = [
    "DrawnProjection",
    "StoredProjection",
    "VeraConfig",
    "VeraLinear",
    "drawn_uniform",
    "vera_update",
]
