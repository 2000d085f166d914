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
    """W[ids], for W (count, D): (...) -> (..., D). Raises TokenError for an id out of range."""
    return apply(ops.embedding, weight, ids=ids)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), the exact form."""
    return apply_fused(ops.gelu, x)


def gelu_tanh(x: Tensor) -> Tensor:
    """x Φ(x) in GPT-2's approximation by tanh."""
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
    """Compute the error function 2/√π ∫₀ˣ e^(-t²) dt."""
    return apply(ops.erf, x)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """max(a, b), element by element."""
    return apply(ops.maximum, a, b)


def max(x: Tensor, axis: int, *, keepdims: bool = False) -> Tensor:  # noqa: A001 - NumPy's name
    """Take the maximum along one axis."""
    return apply(ops.max, x, axis=axis, keepdims=keepdims)


def where(condition: AnyArray, a: Tensor, b: Tensor) -> Tensor:
    """Choose a where the condition holds, else b."""
    return apply(ops.where, a, b, condition=condition)


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join the tensors along one axis."""
    return apply(ops.concatenate, *tensors, axis=axis)


def broadcast_to(x: Tensor, shape: Shape) -> Tensor:
    """Repeat x along new axes and axes of size one."""
    return apply(ops.broadcast_to, x, shape=shape)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """eˣ / Σ eˣ along one axis."""
    return apply(ops.softmax, x, axis=axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - ln Σ eˣ along one axis."""
    return apply(ops.log_softmax, x, axis=axis)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise the last axis to mean 0 and variance 1, times `weight` (D,) plus `bias`."""
    return apply_fused(ops.layer_norm, x, weight, bias, eps=eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square over the last axis, and scale by `weight` (D,)."""
    return apply_fused(ops.rms_norm, x, weight, eps=eps)


def dropout(x: Tensor, keep: BoolArray, rate: float) -> Tensor:
    """x / (1 - rate) where `keep` holds, else 0."""
    return apply(ops.dropout, x, keep=keep, rate=rate)


def rotary(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Rotate (B, T, H, D) by its positions' cos and sin, each (T, D/2) or (B, T, D/2)."""
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
    """softmax([Pk; k] q / √D) [Pv; v], [;] joining along the keys: (B, T, H, D).

    q (B, T, H, D), k and v (B, S, K, D), prefix keys and values (P, K, D) or (B, P, K, D).
    `keys` (B, S) is True for the keys of real tokens; `keep` (B, H, T, P + S) and `rate` drop
    probabilities. Raises ShapeError where the heads do not divide.
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
    """Apply `attention` to packed queries, keys and values: (B, T, 3 H D) -> (B, T, H D)."""
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
    """Average -ln softmax over the targets (...) that count, for logits (..., C): a scalar."""
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
    """cross_entropy(linear(x, W, b), targets), with a part of the logits in memory at a time."""
    return apply_fused(
        ops.linear_cross_entropy,
        x,
        weight,
        bias,
        targets=targets,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
