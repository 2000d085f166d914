"""The ops on tensors, typed. Shapes and formulas stand with the ops of the same names."""

from collections.abc import Sequence

from tinygrad_peft import ops
from tinygrad_peft.arrays import AnyArray, Array, BoolArray, IntArray, Shape
from tinygrad_peft.ops.loss import IGNORE_INDEX
from tinygrad_peft.tensor import Tensor, apply, apply_fused

__all__ = [
    "attention",
    "attention_packed",
    "broadcast_to",
    "concatenate",
    "cross_entropy",
    "dropout",
    "embedding",
    "erf",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "max",
    "maximum",
    "relu",
    "rms_norm",
    "rotary",
    "silu",
    "softmax",
    "swiglu",
    "where",
]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b: (..., in) -> (..., out), for W (out, in) and b (out,)."""
    return apply_fused(ops.linear, x, weight, bias)


def embedding(weight: Tensor, ids: IntArray) -> Tensor:
    """Rows of W (count, D) by id: (...) -> (..., D). Raises TokenError for an id outside."""
    return apply(ops.embedding, weight, ids=ids)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), the exact form."""
    return apply_fused(ops.gelu, x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's approximation of GELU."""
    return apply_fused(ops.gelu_tanh, x)


def silu(x: Tensor) -> Tensor:
    """x σ(x)."""
    return apply_fused(ops.silu, x)


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return apply_fused(ops.relu, x)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) ⊙ up."""
    return apply_fused(ops.swiglu, gate, up)


def erf(x: Tensor) -> Tensor:
    """The error function."""
    return apply(ops.erf, x)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """The larger of a and b, element by element."""
    return apply(ops.maximum, a, b)


def max(x: Tensor, axis: int, *, keepdims: bool = False) -> Tensor:  # noqa: A001 - NumPy's name
    """The largest along one axis."""
    return apply(ops.max, x, axis=axis, keepdims=keepdims)


def where(condition: AnyArray, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    return apply(ops.where, a, b, condition=condition)


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors one after the other along one axis."""
    return apply(ops.concatenate, *tensors, axis=axis)


def broadcast_to(x: Tensor, shape: Shape) -> Tensor:
    """Repeated along new and size-one axes."""
    return apply(ops.broadcast_to, x, shape=shape)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """eˣ / Σ eˣ along one axis."""
    return apply(ops.softmax, x, axis=axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - ln Σ eˣ along one axis."""
    return apply(ops.log_softmax, x, axis=axis)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last axis, of size D as weight and bias."""
    return apply_fused(ops.layer_norm, x, weight, bias, eps=eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last axis, of size D as the weight."""
    return apply_fused(ops.rms_norm, x, weight, eps=eps)


def dropout(x: Tensor, keep: BoolArray, rate: float) -> Tensor:
    """x / (1 - rate) where `keep` holds, else 0."""
    return apply(ops.dropout, x, keep=keep, rate=rate)


def rotary(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Rotary positions on (B, T, H, D), with cos and sin (T, D/2) or (B, T, D/2)."""
    return apply(ops.rotary, x, cos=cos, sin=sin)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    keys: BoolArray | None = None,
    keep: BoolArray | None = None,
    rate: float = 0.0,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """q (B, T, H, D), k and v (B, S, K, D), prefix keys and values (P, K, D) -> (B, T, H, D).

    `keys` (B, S) is True where a key is no padding; `keep` (B, H, T, P + S) and `rate` are dropout
    of the probabilities. Raises ShapeError where the heads do not divide.
    """
    prefix_k, prefix_v = prefix or (None, None)
    return apply_fused(
        ops.attention, q, k, v, prefix_k, prefix_v, causal=causal, keys=keys, keep=keep, rate=rate
    )


def attention_packed(
    qkv: Tensor,
    *,
    prefix: tuple[Tensor, Tensor] | None = None,
    heads: int,
    causal: bool,
    keys: BoolArray | None = None,
    keep: BoolArray | None = None,
    rate: float = 0.0,
) -> Tensor:
    """`attention` of one projection's queries, keys and values: (B, T, 3 H D) -> (B, T, H D)."""
    prefix_k, prefix_v = prefix or (None, None)
    return apply_fused(
        ops.attention_packed,
        qkv,
        prefix_k,
        prefix_v,
        heads=heads,
        causal=causal,
        keys=keys,
        keep=keep,
        rate=rate,
    )


def cross_entropy(
    logits: Tensor,
    targets: IntArray,
    *,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean over targets (...) that are not ignored, for logits (..., C): a scalar."""
    return apply_fused(
        ops.cross_entropy,
        logits,
        targets=targets,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: IntArray,
    *,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`cross_entropy(linear(x, W, b), targets)` without the logits ever being in memory at once."""
    return apply_fused(
        ops.linear_cross_entropy,
        x,
        weight,
        bias,
        targets=targets,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
