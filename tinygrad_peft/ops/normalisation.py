"""Softmax, layer norm and RMS norm: each one op, with a gradient derived by hand."""

import numpy as np

from tinygrad_peft.arrays import Array, block_rows, blocks, rows
from tinygrad_peft.ops._result import FusedResult, Needs, Result

__all__ = ["layer_norm", "log_softmax", "rms_norm", "softmax"]


def softmax(a: Array, *, axis: int = -1) -> Result:
    """p = eᵃ / Σ eᵃ, with da = p (g - Σ g p)."""
    p = np.exp(a - a.max(axis=axis, keepdims=True, initial=-np.inf))
    p /= p.sum(axis=axis, keepdims=True)
    return p, (lambda g: p * (g - (g * p).sum(axis=axis, keepdims=True)),)


def log_softmax(a: Array, *, axis: int = -1) -> Result:
    """a - ln Σ eᵃ, with da = g - eᵛ Σ g for the value v."""
    shifted = a - a.max(axis=axis, keepdims=True)
    value = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return value, (lambda g: g - np.exp(value) * g.sum(axis=axis, keepdims=True),)


def layer_norm(
    needs: Needs, x: Array, weight: Array, bias: Array | None, *, eps: float
) -> FusedResult:
    """y = n ⊙ w + b, n = (x - mean x) / √(var x + eps), over the last axis (Ba et al. 2016).

    dx = (h - mean h - n mean(h n)) / √(var + eps) with h = g ⊙ w; dw = Σ g n; db = Σ g.
    """
    return _norm(needs, x, weight, bias, eps=eps, centred=True)


def rms_norm(needs: Needs, x: Array, weight: Array, *, eps: float) -> FusedResult:
    """y = n ⊙ w, n = x / √(mean x² + eps), over the last axis (Zhang and Sennrich 2019).

    dx = (h - n mean(h n)) / √(mean x² + eps) with h = g ⊙ w; dw = Σ g n.
    """
    value, pullback = _norm((*needs, False), x, weight, None, eps=eps, centred=False)
    return value, lambda g: pullback(g)[:2]


def _norm(
    needs: Needs, x: Array, weight: Array, bias: Array | None, *, eps: float, centred: bool
) -> FusedResult:
    """Compute either norm, a cache-sized block of rows at a time; `centred` is the layer norm."""
    need_x, need_weight, need_bias = needs
    x2, y = rows(x), np.empty(x.shape, x.dtype)
    keep = need_x or need_weight
    normed = np.empty_like(x2) if keep else None
    inverse = np.empty((len(x2), 1), x.dtype)  # 1 / √(var + eps)
    for block in blocks(*x2.shape):
        part, out = x2[block], rows(y)[block]
        n = normed[block] if normed is not None else out
        np.subtract(part, part.mean(axis=1, keepdims=True) if centred else 0, out=n)
        variance = np.einsum("ij,ij->i", n, n)[:, None] / n.shape[1]
        inverse[block] = 1 / np.sqrt(variance + eps)
        n *= inverse[block]
        np.multiply(n, weight, out=out)
        if bias is not None:
            out += bias

    def pullback(g: Array) -> tuple[Array | None, ...]:
        g2 = rows(g)
        dx = None
        if need_x and normed is not None:
            dx = _norm_backward(g2, weight, normed, inverse, centred=centred).reshape(g.shape)
        return (
            dx,
            np.einsum("ij,ij->j", g2, normed) if need_weight and normed is not None else None,
            g2.sum(axis=0) if need_bias else None,
        )

    return y, pullback


def _norm_backward(
    g: Array, weight: Array, normed: Array, inverse: Array, *, centred: bool
) -> Array:
    """dx of either norm, block by block: (rows, D)."""
    dx = np.empty(g.shape, g.dtype)
    scratch = np.empty((block_rows(*g.shape), g.shape[1]), g.dtype)
    for block in blocks(*g.shape):
        h, n = dx[block], normed[block]
        np.multiply(g[block], weight, out=h)
        along = np.einsum("ij,ij->i", h, n)[:, None] / h.shape[1]
        if centred:
            h -= h.mean(axis=1, keepdims=True)
        h -= np.multiply(n, along, out=scratch[: len(n)])
        h *= inverse[block]
    return dx
