"""One layer of the transformer: attention and a feed-forward layer, with residuals and norms."""

from collections.abc import Callable

from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.attention import MultiHeadAttention, PackedAttention
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.init import Init
from tinygrad_peft.nn.layers import Dropout, LayerNorm, Linear, RMSNorm
from tinygrad_peft.nn.module import Module
from tinygrad_peft.nn.seams import Affine, Attention, Context, Layer, Norm, Residual
from tinygrad_peft.tensor import Tensor

__all__ = ["Block", "FeedForward", "GatedFeedForward", "ResidualSum", "make_norm"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": F.gelu_tanh,
    "silu": F.silu,
    "relu": F.relu,
}


class FeedForward(Module):
    """down(act(up(x))): (B, T, D) -> (B, T, D)."""

    up_proj: Affine
    down_proj: Affine

    def __init__(self, config: TransformerConfig, init: Init) -> None:
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = Linear(width, inner, bias=bias, init=init)
        self.down_proj = Linear(inner, width, bias=bias, init=init)
        self.activation = _ACTIVATIONS[config.activation]

    def __call__(self, x: Tensor, _: Context | None = None) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class GatedFeedForward(Module):
    """down(silu(gate(x)) ⊙ up(x)): (B, T, D) -> (B, T, D)."""

    gate_proj: Affine
    up_proj: Affine
    down_proj: Affine

    def __init__(self, config: TransformerConfig, init: Init) -> None:
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias, init=init)
        self.up_proj = Linear(width, inner, bias=bias, init=init)
        self.down_proj = Linear(inner, width, bias=bias, init=init)

    def __call__(self, x: Tensor, _: Context | None = None) -> Tensor:
        return self.down_proj(F.swiglu(self.gate_proj(x), self.up_proj(x)))


class ResidualSum(Module):
    """x + h, or norm(x + h): twice (B, T, D) -> (B, T, D)."""

    def __call__(self, x: Tensor, h: Tensor, norm: Norm | None, _: Context | None = None) -> Tensor:
        y = x + h
        return y if norm is None else norm(y)


class Block(Module):
    """Attention and feed-forward layer, each with a residual and a norm before or after it.

    pre:   x + attn(norm(x)), x + mlp(norm(x));  post: norm(x + attn(x)), norm(x + mlp(x)).
    """

    attn: Attention
    attn_norm: Norm
    attn_residual: Residual
    mlp: Layer
    mlp_norm: Norm
    mlp_residual: Residual

    def __init__(self, config: TransformerConfig, init: Init) -> None:
        self.attn_norm = make_norm(config, init)
        self.attn = (PackedAttention if config.packed_qkv else MultiHeadAttention)(config, init)
        self.attn_residual = ResidualSum()
        self.mlp_norm = make_norm(config, init)
        self.mlp = (GatedFeedForward if config.gated_mlp else FeedForward)(config, init)
        self.mlp_residual = ResidualSum()
        self.dropout = Dropout(config.hidden_dropout)
        self.pre_norm = config.norm_position == "pre"

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        if self.pre_norm:
            h = self.dropout(self.attn(self.attn_norm(x), context))
            x = self.attn_residual(x, h, None, context)
            h = self.dropout(self.mlp(self.mlp_norm(x), context))
            return self.mlp_residual(x, h, None, context)
        h = self.dropout(self.attn(x, context))
        x = self.attn_residual(x, h, self.attn_norm, context)
        h = self.dropout(self.mlp(x, context))
        return self.mlp_residual(x, h, self.mlp_norm, context)


def make_norm(config: TransformerConfig, init: Init) -> LayerNorm | RMSNorm:
    """Make the norm over the hidden size that a config names."""
    kind = RMSNorm if config.norm == "rms_norm" else LayerNorm
    return kind(config.hidden_size, config.norm_eps, init=init)
