"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751, section 2.1 and figure 2).

    u(x) = s (U f(D x + b) + c)

    D (m, d)  adapter_down      b (m,)
    U (d, m)  adapter_up        c (d,)      m much smaller than d
    f         an activation, s a fixed factor

    after a sublayer F    y = h + u(h), h = F(x)     Houlsby et al.; Pfeiffer et al. 2020
    beside it             y = F(x) + u(x)            He et al. 2022, arXiv 2110.04366, table 1

The adapter is part of the sublayer: where norms come after the residual, as in BERT, the block
computes norm(x + y), as figure 2 has it. Where it reads the hidden states r that the sublayer's
output h is added to, as in AdapterHub's library,

    after the sublayer    y = h + u(r + h), or y = h + u(norm(r + h)) where that norm follows
    beside it             y = h + u(r)

With g the gradient of y and e = s f'(D x + b) ⊙ (Uᵀ g):
dU = s g f(D x + b)ᵀ,  dc = s Σ g,  dD = e xᵀ,  db = Σ e,  du/dx gives Dᵀ e.

With f in between, no plain layer has the same output: an adapter cannot be merged.
"""

from collections.abc import Callable, Mapping

from tinygrad_peft.nn import (
    Attention,
    Context,
    Dropout,
    Init,
    Layer,
    LayerNorm,
    Linear,
    Module,
    Norm,
    Residual,
)
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_adapter.config import BottleneckAdapterConfig

__all__ = ["AttentionAdapter", "BottleneckAdapter", "LayerAdapter", "ResidualAdapter"]

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": F.gelu_tanh,
    "silu": F.silu,
    "tanh": Tensor.tanh,
}


class BottleneckAdapter(Module):
    """u(x) = s up(f(down(norm(x)))), for any seam: (..., d) -> (..., d)."""

    adapter_norm: LayerNorm | None
    adapter_down: Linear
    adapter_up: Linear

    def __init__(self, config: BottleneckAdapterConfig, width: int, init: Init) -> None:
        inner = config.bottleneck(width)
        self.scaling = config.scale
        self.parallel = config.placement == "parallel"
        self.drops_output = config.drops == "output"
        self.activation = _ACTIVATIONS[config.activation]
        self.adapter_norm = LayerNorm(width, init=init) if config.layer_norm else None
        self.adapter_down = Linear(width, inner, bias=config.bias, init=init)
        self.adapter_up = Linear(inner, width, bias=config.bias, init=init)
        self.dropout = Dropout(config.dropout)
        self.dropout.rng = init.rng  # its own stream: no two layers drop the same elements
        if config.init_weights == "identity":
            self.adapter_up.weight.data = init.zeros(width, inner)
        else:
            self.adapter_down.weight.data = init.truncated_normal(inner, width, std=0.01)
            self.adapter_up.weight.data = init.truncated_normal(width, inner, std=0.01)

    def update(self, x: Tensor) -> Tensor:
        """Return u(x), without the residual: (..., d) -> (..., d)."""
        normed = x if self.adapter_norm is None else self.adapter_norm(x)
        inner = self.activation(self.adapter_down(normed))  # (..., m)
        out = self.adapter_up(inner if self.drops_output else self.dropout(inner))
        scaled = out if self.scaling == 1 else out * self.scaling
        return self.dropout(scaled) if self.drops_output else scaled


class AttentionAdapter(BottleneckAdapter):
    """h + u(h), with h attention's output: (B, T, D) -> (B, T, D)."""

    base_layer: Attention

    def __init__(
        self, base: Attention, config: BottleneckAdapterConfig, width: int, init: Init
    ) -> None:
        super().__init__(config, width, init)
        self.num_heads, self.num_kv_heads = base.num_heads, base.num_kv_heads
        self.head_dim = base.head_dim
        self.base_layer = base

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        h = self.base_layer(x, context)
        return h + self.update(h)


class LayerAdapter(BottleneckAdapter):
    """h + u(h), with h the layer's output, or h + u(x) beside it: (B, T, D) -> (B, T, D)."""

    base_layer: Layer

    def __init__(
        self, base: Layer, config: BottleneckAdapterConfig, width: int, init: Init
    ) -> None:
        super().__init__(config, width, init)
        self.base_layer = base

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        h = self.base_layer(x, context)
        return h + self.update(x if self.parallel else h)


class ResidualAdapter(BottleneckAdapter):
    """h + u of the hidden states x, with h or without: twice (B, T, D) -> (B, T, D)."""

    base_layer: Residual

    def __init__(
        self, base: Residual, config: BottleneckAdapterConfig, width: int, init: Init
    ) -> None:
        super().__init__(config, width, init)
        self.base_layer = base

    def __call__(self, x: Tensor, h: Tensor, norm: Norm | None, context: Context) -> Tensor:
        seen = x if self.parallel else self.base_layer(x, h, norm, context)
        return self.base_layer(x, h + self.update(seen), norm, context)
