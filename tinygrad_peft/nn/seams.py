"""Protocols for the places in a model where a method may put its own module.

An owner's annotation names what may stand there: `q_proj: Affine` takes a Linear, a 4-bit layer, or
another method's wrapper. A method asks for the protocol and not for a class, so it works on all of
them.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tinygrad_peft.arrays import Array, BoolArray, IntArray
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.roles import Roles
from tinygrad_peft.nn.virtual import VirtualKeys, VirtualTokens
from tinygrad_peft.tensor import Tensor

__all__ = [
    "Affine",
    "Attention",
    "BlockLike",
    "Context",
    "Layer",
    "Norm",
    "Prefix",
    "Prompt",
    "Residual",
    "TokenEmbedding",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The facts of one forward pass that every part of a block gets beside the hidden states.

    Attributes:
        causal: True if a token sees the tokens before it alone.
        roles: which positions are virtual, padding, prompt and continuation, and how many tokens
            are cached.
        keys: (B, P + S), False for the keys of padding; None: all are visible.
        rotary: cos and sin, each (T, D/2) or (B, T, D/2).
        cache: the layer's keys and values of earlier tokens.
        prefix: the layer's virtual keys and values, each (P, K, D) or (B, P, K, D).
    """

    causal: bool
    roles: Roles
    keys: BoolArray | None = None
    rotary: tuple[Array, Array] | None = None
    cache: LayerCache | None = None
    prefix: tuple[Tensor, Tensor] | None = None

    def in_layer(self, cache: LayerCache | None, prefix: tuple[Tensor, Tensor] | None) -> "Context":
        """Add a layer's own cache and prefix."""
        return Context(
            causal=self.causal,
            roles=self.roles,
            keys=self.keys,
            rotary=self.rotary,
            cache=cache,
            prefix=prefix,
        )

    def of(self, rows: IntArray, batch: int) -> "Context":
        """Select rows of the batch."""
        rotary, prefix = self.rotary, self.prefix
        if rotary is not None and rotary[0].ndim == 3:
            rotary = rotary[0][rows], rotary[1][rows]
        if prefix is not None and prefix[0].ndim == 4:
            prefix = prefix[0][rows], prefix[1][rows]
        return Context(
            causal=self.causal,
            roles=self.roles.of(rows),
            keys=None if self.keys is None else self.keys[rows],
            rotary=rotary,
            cache=None if self.cache is None else self.cache.of(rows, batch),
            prefix=prefix,
        )


@runtime_checkable
class Affine(Protocol):
    """x Wᵀ + b, or its stand-in: (..., in_features) -> (..., out_features)."""

    in_features: int
    out_features: int

    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class Norm(Protocol):
    """A norm over the last axis: (B, T, D) -> (B, T, D)."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class Attention(Protocol):
    """Self-attention: (B, T, D) -> (B, T, D)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __call__(self, x: Tensor, context: Context, /) -> Tensor: ...


@runtime_checkable
class Layer(Protocol):
    """A feed-forward layer: (B, T, D) -> (B, T, D)."""

    def __call__(self, x: Tensor, context: Context, /) -> Tensor: ...


@runtime_checkable
class Residual(Protocol):
    """The sum of the hidden states x and a sublayer's output h: twice (B, T, D) -> (B, T, D).

    `norm` follows the sum, where the model has one there.
    """

    def __call__(self, x: Tensor, h: Tensor, norm: Norm | None, context: Context, /) -> Tensor: ...


@runtime_checkable
class BlockLike(Protocol):
    """A whole layer of the transformer: (B, T, D) -> (B, T, D)."""

    def __call__(self, x: Tensor, context: Context, /) -> Tensor: ...


@runtime_checkable
class TokenEmbedding(Protocol):
    """Token ids to vectors: (B, T) -> (B, T, D)."""

    num_embeddings: int
    embedding_dim: int

    def __call__(self, ids: IntArray, /) -> Tensor: ...


@runtime_checkable
class Prompt(Protocol):
    """The virtual tokens in front of every text, or None."""

    def __call__(self) -> VirtualTokens | None: ...


@runtime_checkable
class Prefix(Protocol):
    """The keys and values in front of each attention layer's own, or None."""

    def __call__(self) -> VirtualKeys | None: ...
