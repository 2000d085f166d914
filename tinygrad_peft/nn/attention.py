"""Multi-head self-attention, with separate projections or with one for all three."""

from tinygrad_peft.arrays import BoolArray
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.init import Init
from tinygrad_peft.nn.layers import Dropout, Linear
from tinygrad_peft.nn.module import Module
from tinygrad_peft.nn.seams import Affine, Context
from tinygrad_peft.tensor import Tensor

__all__ = ["MultiHeadAttention", "PackedAttention"]


class _SelfAttention(Module):
    """The common part of both kinds: heads, dropout, and attention itself."""

    def __init__(self, config: TransformerConfig) -> None:
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.dropout = Dropout(config.attention_dropout)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """softmax(q kᵀ / √D) v, after rotary positions and the cache.

        q (B, T, H, D), k and v (B, T, K, D) -> (B, T, H D).
        """
        if context.rotary is not None:
            q, k = F.rotary(q, *context.rotary), F.rotary(k, *context.rotary)
        if context.cache is not None:
            k, v = context.cache.extend(k, v)
        mixed = F.attention(
            q,
            k,
            v,
            prefix=context.prefix,
            causal=context.causal,
            keys=context.keys,
            keep=self._keep(q.shape[0], q.shape[1], k.shape[1], context),
            rate=self.dropout.rate,
        )
        return mixed.reshape(*mixed.shape[:2], self.num_heads * self.head_dim)

    def _keep(self, batch: int, queries: int, keys: int, context: Context) -> BoolArray | None:
        """Draw the probabilities that dropout keeps: (B, H, T, P + S). None: all."""
        virtual = 0 if context.prefix is None else context.prefix[0].shape[-3]
        return self.dropout.keep((batch, self.num_heads, queries, virtual + keys))


class MultiHeadAttention(_SelfAttention):
    """softmax(q kᵀ / √D) v over heads, whose keys and values groups of heads may share.

    (Vaswani et al. 2017, section 3.2.2; grouped queries: Ainslie et al. 2023.)
    """

    q_proj: Affine
    k_proj: Affine
    v_proj: Affine
    o_proj: Affine

    def __init__(self, config: TransformerConfig, init: Init) -> None:
        super().__init__(config)
        width, bias = config.hidden_size, config.attention_bias
        inner, kv_inner = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = Linear(width, inner, bias=bias, init=init)
        self.k_proj = Linear(width, kv_inner, bias=bias, init=init)
        self.v_proj = Linear(width, kv_inner, bias=bias, init=init)
        self.o_proj = Linear(inner, width, bias=bias, init=init)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        q = self.q_proj(x).reshape(*x.shape[:2], self.num_heads, self.head_dim)  # (B, T, H, D)
        k = self.k_proj(x).reshape(*x.shape[:2], self.num_kv_heads, self.head_dim)  # (B, T, K, D)
        v = self.v_proj(x).reshape(*x.shape[:2], self.num_kv_heads, self.head_dim)  # (B, T, K, D)
        return self.o_proj(self.attend(q, k, v, context))


class PackedAttention(_SelfAttention):
    """softmax(q kᵀ / √D) v with one projection for queries, keys and values, as in GPT-2."""

    qkv_proj: Affine
    o_proj: Affine

    def __init__(self, config: TransformerConfig, init: Init) -> None:
        super().__init__(config)
        width, inner = config.hidden_size, self.num_heads * self.head_dim
        self.qkv_proj = Linear(width, 3 * inner, bias=config.attention_bias, init=init)
        self.o_proj = Linear(inner, width, bias=config.attention_bias, init=init)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        qkv = self.qkv_proj(x)  # (B, T, 3 H D)
        if context.cache is None and context.rotary is None:
            batch, tokens = x.shape[:2]
            mixed = F.attention_packed(
                qkv,
                prefix=context.prefix,
                heads=self.num_heads,
                causal=context.causal,
                keys=context.keys,
                keep=self._keep(batch, tokens, tokens, context),
                rate=self.dropout.rate,
            )
        else:
            parts = qkv.reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)
            mixed = self.attend(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2], context)
        return self.o_proj(mixed)
