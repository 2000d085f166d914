"""The places in a model where a method may put something else, as protocols.

An owner's annotation says what may stand there: `q_proj: Affine` takes a Linear, a 4-bit layer, or
another method's wrapper. A method asks for the protocol and not for a class, so it works on all of
them.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tinygrad_peft.arrays import Array, BoolArray, IntArray
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.virtual import VirtualKeys, VirtualTokens
from tinygrad_peft.tensor import Tensor

__all__ = [
    "Affine",
    "Attention",
    "Context",
    "Layer",
    "Prefix",
    "Prompt",
    "Residual",
    "TokenEmbedding",
]


@dataclass(frozen=True, slots=True)
class Context:
    """What every attention layer of one forward pass is given beside the hidden states."""

    keys: BoolArray | None = None  # (B, P + S), False for padding; None: all may be seen
    rotary: tuple[Array, Array] | None = None  # cos and sin, each (T, D/2) or (B, T, D/2)
    cache: LayerCache | None = None  # the keys and values of earlier tokens
    prefix: tuple[Tensor, Tensor] | None = None  # the layer's, each (P, K, D) or (B, P, K, D)

    def of(self, rows: IntArray, batch: int) -> "Context":
        """What it is for some rows of the batch."""
        rotary, prefix = self.rotary, self.prefix
        if rotary is not None and rotary[0].ndim == 3:
            rotary = rotary[0][rows], rotary[1][rows]
        if prefix is not None and prefix[0].ndim == 4:
            prefix = prefix[0][rows], prefix[1][rows]
        return Context(
            keys=None if self.keys is None else self.keys[rows],
            rotary=rotary,
            cache=None if self.cache is None else self.cache.of(rows, batch),
            prefix=prefix,
        )


@runtime_checkable
class Layer(Protocol):
    """A map of hidden states: (B, T, D) -> (B, T, D'). Norms and feed-forward layers are such."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class Affine(Protocol):
    """x Wᵀ + b, or what stands in for it: (..., in_features) -> (..., out_features)."""

    in_features: int
    out_features: int

    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class Attention(Protocol):
    """Self-attention: (B, T, D) -> (B, T, D)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __call__(self, x: Tensor, context: Context, /) -> Tensor: ...


@runtime_checkable
class Residual(Protocol):
    """The hidden states and what a sublayer made of them, as one: twice (B, T, D) -> (B, T, D).

    `norm` is what comes after the sum, if anything does.
    """

    def __call__(self, x: Tensor, h: Tensor, norm: Layer | None, /) -> Tensor: ...


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
