"""Scaled dot-product attention, and rotary position embedding.

Attention(q, k, v) = softmax(q kᵀ / √D + mask) v        (Vaswani et al. 2017, section 3.2.1, eq. 1)

With p the softmax and g the gradient of the output:  dv = pᵀ g,  dp = g vᵀ,
ds = p ⊙ (dp - Σ dp ⊙ p) / √D,  dq = ds k,  dk = dsᵀ q.

Axes: B batch, T queries, S keys, H query heads, K key/value heads, G = H / K queries a key head
serves, D head size, P prefix length. The scores are computed for as many (batch, head) pairs at a
time as stay in the cache.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray
from tinygrad_peft.errors import ShapeError
from tinygrad_peft.ops._result import FusedResult, Needs, Result

__all__ = ["attention", "attention_packed", "rotary"]

SCORES_IN_CACHE = 131_072
MASKED = -1e9  # finite, so that fully masked rows stay finite


@dataclass(frozen=True, slots=True)
class Mask:
    """The keys that a query may see, and the probabilities that dropout keeps.

    `keys` (B, S) is False for padding; `causal` aligns the last query with the last key, so that
    keys from a cache or a prefix come before the first query. `keep` (B, H, T, S) and `rate` are
    dropout of the probabilities.
    """

    causal: bool
    keys: BoolArray | None = None
    keep: BoolArray | None = None
    rate: float = 0.0

    def bias(self, queries: int, keys: int, dtype: np.dtype[np.floating]) -> Array | None:
        """0 where a query may look, a large negative number elsewhere: (B or 1, 1, 1, T, S)."""
        allowed = None
        if self.causal and queries > 1:
            allowed = np.tri(queries, keys, keys - queries, dtype=bool)[None, None, None]
        if self.keys is not None and not self.keys.all():
            padding = self.keys[:, None, None, None, :]
            allowed = padding if allowed is None else allowed & padding
        return None if allowed is None else np.where(allowed, dtype.type(0), dtype.type(MASKED))


def attention(
    needs: Needs,
    q: Array,
    k: Array,
    v: Array,
    prefix_k: Array | None = None,
    prefix_v: Array | None = None,
    *,
    causal: bool,
    keys: BoolArray | None = None,
    keep: BoolArray | None = None,
    rate: float = 0.0,
) -> FusedResult:
    """q (B, T, H, D), k and v (B, S, K, D), prefixes (P, K, D) or (B, P, K, D) -> (B, T, H, D).

    Every query sees the whole prefix, except for the padding in `keys` (B, P + S). H must be a
    multiple of K. `keep` (B, H, T, P + S) drops probabilities at `rate`.
    """
    _check(q, k, v)
    k, v, length = _with_prefix(prefix_k, prefix_v, k, v)
    _check_mask(keys, k)
    mask = Mask(causal=causal, keys=keys, keep=keep, rate=rate)
    out = np.empty(q.shape, q.dtype)
    probs = _forward(q, k, v, out, mask, keep_probs=any(needs))
    if probs is None:
        return out, lambda _: (None,) * len(needs)
    need_q, need_k, need_v, need_prefix_k, need_prefix_v = needs
    kept_q = q if need_k or need_prefix_k else None
    kept_k = k if need_q else None
    kept_v = v if need_q or need_k or need_prefix_k else None
    q_shape, k_shape = q.shape, k.shape

    def pullback(g: Array) -> tuple[Array | None, ...]:
        dq = np.empty(q_shape, g.dtype) if need_q else None
        dk = np.empty(k_shape, g.dtype) if kept_q is not None else None
        dv = np.empty(k_shape, g.dtype) if need_v or need_prefix_v else None
        _backward(g, kept_q, kept_k, kept_v, probs, mask, dq, dk, dv)
        return (
            dq,
            dk[:, length:] if need_k and dk is not None else None,
            dv[:, length:] if need_v and dv is not None else None,
            _prefix_grad(dk, prefix_k) if need_prefix_k else None,
            _prefix_grad(dv, prefix_v) if need_prefix_v else None,
        )

    return out, pullback


def attention_packed(
    needs: Needs,
    qkv: Array,
    prefix_k: Array | None = None,
    prefix_v: Array | None = None,
    *,
    heads: int,
    causal: bool,
    keys: BoolArray | None = None,
    keep: BoolArray | None = None,
    rate: float = 0.0,
) -> FusedResult:
    """Attend within one projection of queries, keys and values: (B, T, 3 H D) -> (B, T, H D).

    As `attention`; without a prefix the gradient is written straight into one array of the input's
    shape.
    """
    batch, tokens, width = qkv.shape
    if width % (3 * heads):
        raise ShapeError(
            f"attention: expected a multiple of 3 x {heads} heads, got a width of {width}"
        )
    parts = qkv.reshape(batch, tokens, 3, heads, width // (3 * heads))  # (B, T, 3, H, D)
    q = parts[:, :, 0]
    k, v, length = _with_prefix(prefix_k, prefix_v, parts[:, :, 1], parts[:, :, 2])
    _check_mask(keys, k)
    mask = Mask(causal=causal, keys=keys, keep=keep, rate=rate)
    out = np.empty(q.shape, q.dtype)
    probs = _forward(q, k, v, out, mask, keep_probs=any(needs))
    need_qkv, need_prefix_k, need_prefix_v = needs

    def pullback(g: Array) -> tuple[Array | None, ...]:
        if probs is None:
            return (None, None, None)
        grad = np.empty_like(parts)
        dq, dk, dv = grad[:, :, 0], grad[:, :, 1], grad[:, :, 2]
        if length:
            dk, dv = np.empty(k.shape, k.dtype), np.empty(k.shape, k.dtype)
        _backward(g.reshape(q.shape), q, k, v, probs, mask, dq if need_qkv else None, dk, dv)
        if length and need_qkv:
            grad[:, :, 1], grad[:, :, 2] = dk[:, length:], dv[:, length:]
        return (
            grad.reshape(qkv.shape) if need_qkv else None,
            _prefix_grad(dk, prefix_k) if need_prefix_k else None,
            _prefix_grad(dv, prefix_v) if need_prefix_v else None,
        )

    return out.reshape(batch, tokens, width // 3), pullback


def rotary(x: Array, *, cos: Array, sin: Array) -> Result:
    """Rotate each pair (xᵢ, xᵢ₊D/2) of x (B, T, H, D) by its position's angle.

    (Su et al. 2021, eq. 34.)
    cos and sin are (T, D/2), or (B, T, D/2) if rows start at different positions.
    """
    c, s = cos[..., None, :], sin[..., None, :]  # (..., T, 1, D/2)
    return _turn(x, c, s), (lambda g: _turn(g, c, -s),)


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = np.empty_like(x)
    np.subtract(first * cos, second * sin, out=out[..., :half])
    np.add(second * cos, first * sin, out=out[..., half:])
    return out


def _check(q: Array, k: Array, v: Array) -> None:
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ShapeError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit")
    if q.shape[1] and not k.shape[1]:
        raise ShapeError(f"attention: expected a key for {q.shape[1]} queries, got none")
    if q.shape[2] % k.shape[2]:
        raise ShapeError(
            f"attention: query heads: expected a multiple of {k.shape[2]}, got {q.shape[2]}"
        )


def _check_mask(keys: BoolArray | None, k: Array) -> None:
    if keys is not None and keys.shape != k.shape[:2]:
        raise ShapeError(
            f"attention: padding mask: expected shape {k.shape[:2]} "
            f"for {k.shape[0]} rows of {k.shape[1]} keys, got {keys.shape}"
        )


def _with_prefix(
    prefix_k: Array | None, prefix_v: Array | None, k: Array, v: Array
) -> tuple[Array, Array, int]:
    """Prepend the prefix to each row's keys and values: (B, P + S, K, D) each, and P."""
    if prefix_k is None or prefix_v is None:
        return k, v, 0
    fits = (len(k), prefix_k.shape[-3], *k.shape[2:])
    if prefix_k.shape not in (fits, fits[1:]) or prefix_v.shape != prefix_k.shape:
        raise ShapeError(
            f"attention: prefix keys {prefix_k.shape} and values {prefix_v.shape} "
            f"do not fit keys {k.shape}"
        )
    whole = (np.broadcast_to(prefix, fits) for prefix in (prefix_k, prefix_v))
    k, v = (np.concatenate(pair, axis=1) for pair in zip(whole, (k, v), strict=True))
    return k, v, fits[1]


def _prefix_grad(grad: Array | None, prefix: Array | None) -> Array | None:
    """Take the prefix's part of the keys' or values' gradient (B, P + S, K, D)."""
    if grad is None or prefix is None:
        return None
    own = grad[:, : prefix.shape[-3]]
    return own.sum(axis=0) if prefix.ndim == 3 else own


def _by_head(x: Array, kv_heads: int) -> Array:
    """View x (B, T, H, D) as (B, K, G, T, D)."""
    batch, tokens, heads, size = x.shape
    grouped = x.reshape(batch, tokens, kv_heads, heads // kv_heads, size)
    return grouped.transpose(0, 2, 3, 1, 4)


def _parts(batch: int, heads: int, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Slice batch rows and heads so that their scores fit the cache; nothing without keys."""
    if not keys:
        return
    fit = max(1, SCORES_IN_CACHE // max(1, queries * keys))
    for b in range(0, batch, max(1, fit // heads)):
        for h in range(0, heads, fit):
            yield slice(b, b + max(1, fit // heads)), slice(h, h + fit)


def _forward(
    q: Array, k: Array, v: Array, out: Array, mask: Mask, *, keep_probs: bool
) -> Array | None:
    """Write the attention into `out`; return the probabilities (B, K, G, T, S) if they are kept."""
    kv_heads = k.shape[2]
    qh, kh, vh, outh = (_by_head(x, kv_heads) for x in (q, k, v, out))
    shape = (*qh.shape[:4], k.shape[1])  # (B, K, G, T, S)
    probs = np.empty(shape, q.dtype) if keep_probs else None
    bias, scale = mask.bias(shape[3], shape[4], q.dtype), q.dtype.type(q.shape[3] ** -0.5)
    keep = None if mask.keep is None else mask.keep.reshape(shape)
    for part in _parts(shape[0], shape[1], math.prod(shape[2:4]), shape[4]):
        p = np.matmul(
            qh[part] * scale,
            kh[part].swapaxes(-1, -2),
            out=None if probs is None else probs[part],
        )
        if bias is not None:
            p += bias[part[0]] if len(bias) > 1 else bias
        p -= p.max(axis=-1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=-1, keepdims=True)
        if keep is not None:
            p = p * keep[part] * p.dtype.type(1 / (1 - mask.rate))
        outh[part] = p @ vh[part]
    return probs


def _backward(
    g: Array,
    q: Array | None,
    k: Array | None,
    v: Array | None,
    probs: Array,
    mask: Mask,
    dq: Array | None,
    dk: Array | None,
    dv: Array | None,
) -> None:
    """Write the gradients into dq, dk and dv, where given."""
    batch, kv_heads, groups, tokens, keys = probs.shape
    gh = _by_head(g, kv_heads)
    scale = g.dtype.type(g.shape[3] ** -0.5)
    drop = None if mask.keep is None else mask.keep.reshape(probs.shape)
    for part in _parts(batch, kv_heads, groups * tokens, keys):
        p, gp = probs[part], np.ascontiguousarray(gh[part])
        keep = None if drop is None else drop[part] * p.dtype.type(1 / (1 - mask.rate))
        if dv is not None:
            dropped = p if keep is None else p * keep
            _by_head(dv, kv_heads)[part] = _group_sum(dropped.swapaxes(-1, -2) @ gp)
        if v is None:
            continue
        ds = gp @ _by_head(v, kv_heads)[part].swapaxes(-1, -2)  # (b, k, G, T, S)
        if keep is not None:
            ds *= keep
        ds -= np.einsum("...s,...s->...", ds, p)[..., None]
        ds *= p
        ds *= scale
        if dq is not None and k is not None:
            _by_head(dq, kv_heads)[part] = ds @ _by_head(k, kv_heads)[part]
        if dk is not None and q is not None:
            qp = _by_head(q, kv_heads)[part]
            _by_head(dk, kv_heads)[part] = _group_sum(ds.swapaxes(-1, -2) @ qp)


def _group_sum(x: Array) -> Array:
    """Σ over the queries that share a key head: (b, k, G, S, D) -> (b, k, 1, S, D)."""
    return x if x.shape[2] == 1 else x.sum(axis=2, keepdims=True)
