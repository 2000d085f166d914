"""Cross-entropy, of given logits or of logits made a few rows at a time.

L = - Σᵢ Σ_c qᵢ_c ln pᵢ_c / n, p = softmax(logits), over the n targets that are not ignored, with
q = (1 - ε) onehot(target) + ε / C under label smoothing ε (Szegedy et al. 2016, section 7).
dL/dlogits = (p - q) / n.
"""

import numpy as np

from tinygrad_peft.arrays import Array, IntArray, blocks, rows
from tinygrad_peft.errors import ShapeError, TokenError
from tinygrad_peft.ops._result import FusedResult, Needs

__all__ = ["IGNORE_INDEX", "cross_entropy", "linear_cross_entropy"]

IGNORE_INDEX = -100  # as in PyTorch, and so in data prepared for it
# 104 MB in float32. Each chunk of rows reads the head's weight again, so few chunks are fast.
LOGITS_AT_ONCE = 26_000_000


def cross_entropy(
    needs: Needs,
    logits: Array,
    *,
    targets: IntArray,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
) -> FusedResult:
    """Average over the targets: logits (..., C), targets (...) of class numbers -> a scalar.

    Raises TokenError for a target outside the classes, or if every target is ignored.
    """
    chosen, kept = _supervised(logits.shape, targets, logits.shape[-1], ignore_index)
    scores = rows(logits)[kept]  # a copy
    loss, grad = _loss_and_gradient(scores, chosen, label_smoothing, wanted=needs[0])
    shape, dtype = logits.shape, logits.dtype

    def pullback(g: Array) -> tuple[Array | None, ...]:
        if grad is None:
            return (None,)
        full = np.zeros(shape, dtype)
        rows(full)[kept] = grad * (g / len(chosen))
        return (full,)

    return np.asarray(loss / len(chosen), dtype), pullback


def linear_cross_entropy(
    needs: Needs,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    targets: IntArray,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
) -> FusedResult:
    """`cross_entropy(x Wᵀ + b)` for x (..., D) and W (C, D), a few rows of logits at a time.

    Logits of ignored targets are never computed, and never are all logits in memory: with 50,257
    classes they would be the largest array of a training step. The gradients are made beside the
    loss, while a chunk of logits is there.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"loss: expected x (..., {weight.shape[1]}) for W {weight.shape}, got shape {x.shape}"
        )
    chosen, kept = _supervised(x.shape, targets, len(weight), ignore_index)
    x2 = rows(x)[kept]
    need_x, need_weight, need_bias = needs
    dx = np.empty_like(x2) if need_x else None
    dw = np.zeros_like(weight) if need_weight else None
    db = np.zeros_like(weight[:, 0]) if need_bias else None
    loss, step = 0.0, max(16, LOGITS_AT_ONCE // len(weight))
    for start in range(0, len(chosen), step):
        block = slice(start, start + step)
        logits = x2[block] @ weight.T  # (rows, C)
        if bias is not None:
            logits += bias
        part, grad = _loss_and_gradient(logits, chosen[block], label_smoothing, wanted=any(needs))
        loss += part
        if grad is None:
            continue
        if dx is not None:
            np.matmul(grad, weight, out=dx[block])
        if dw is not None:
            dw += grad.T @ x2[block]
        if db is not None:
            db += grad.sum(axis=0)
    count, shape, dtype = len(chosen), x.shape, x.dtype

    def pullback(g: Array) -> tuple[Array | None, ...]:
        share = g / count
        full = None
        if dx is not None:
            full = np.zeros(shape, dtype)
            rows(full)[kept] = dx * share
        return full, None if dw is None else dw * share, None if db is None else db * share

    return np.asarray(loss / count, dtype), pullback


def _supervised(
    shape: tuple[int, ...], targets: IntArray, classes: int, ignore_index: int
) -> tuple[IntArray, IntArray]:
    """Select the targets that are not ignored: their classes, and their rows."""
    if targets.shape != shape[:-1]:
        raise ShapeError(f"targets: expected shape {shape[:-1]}, got {targets.shape}")
    if targets.dtype.kind not in "iu":
        raise TokenError(f"targets: expected integers, got {targets.dtype}")
    flat = targets.reshape(-1)
    kept = np.flatnonzero(flat != ignore_index)
    chosen = flat[kept]
    if not kept.size:
        raise TokenError("every target is ignored: there is nothing to learn from")
    if chosen.min() < 0 or chosen.max() >= classes:
        bad = int(chosen[(chosen < 0) | (chosen >= classes)][0])
        raise TokenError(f"target {bad} is outside the {classes} classes 0..{classes - 1}")
    return chosen, kept


def _loss_and_gradient(
    logits: Array, targets: IntArray, smoothing: float, *, wanted: bool
) -> tuple[float, Array | None]:
    """Σ of the losses, and p - q in place of the logits (N, C), if wanted; block by block."""
    loss = 0.0
    for block in blocks(*logits.shape):
        loss += _block_loss(logits[block], targets[block], smoothing, wanted=wanted)
    return loss, logits if wanted else None


def _block_loss(logits: Array, targets: IntArray, smoothing: float, *, wanted: bool) -> float:
    index = np.arange(len(targets))
    logits -= logits.max(axis=1, keepdims=True)
    picked = float(logits[index, targets].sum(dtype=np.float64))
    uniform = float(logits.sum(dtype=np.float64)) / logits.shape[1] if smoothing else 0.0
    np.exp(logits, out=logits)
    total = logits.sum(axis=1, keepdims=True)
    loss = float(np.log(total).sum(dtype=np.float64))
    if wanted:
        logits *= 1 / total
        if smoothing:
            logits -= smoothing / logits.shape[1]
        logits[index, targets] -= 1 - smoothing
    return loss - (1 - smoothing) * picked - smoothing * uniform
