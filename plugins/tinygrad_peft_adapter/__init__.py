"""Bottleneck adapters: parameter-efficient transfer learning for NLP (Houlsby et al. 2019)."""

from tinygrad_peft_adapter.config import BottleneckAdapterConfig
from tinygrad_peft_adapter.layer import (
    AttentionAdapter,
    BottleneckAdapter,
    LayerAdapter,
    ResidualAdapter,
)

__all__ = [
    "AttentionAdapter",
    "BottleneckAdapter",
    "BottleneckAdapterConfig",
    "LayerAdapter",
    "ResidualAdapter",
]
