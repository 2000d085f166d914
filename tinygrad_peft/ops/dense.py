"""The affine map, table look-up, and dropout."""

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, IntArray, Shape, rows
from tinygrad_peft.errors import ShapeError, TokenError
from tinygrad_peft.ops._result import FusedResult, Needs, Result

__all__ = ["dropout", "embedding", "linear"]


def linear(needs: Needs, x: Array, weight: Array, bias: Array | None = None) -> FusedResult:
    """y = x Wᵀ + b, for x (..., in), W (out, in), b (out,).

    dx = g W, dW = gᵀ x, db = Σ g. x is kept only where W is trained.
    """
    _check_linear(x.shape, weight.shape, None if bias is None else bias.shape)
    need_x, need_weight, need_bias = needs
    x_shape, out = x.shape, weight.shape[0]
    x2 = rows(x)
    y = x2 @ weight.T  # (rows, out)
    if bias is not None:
        y += bias
    kept = x2 if need_weight else None

    def pullback(g: Array) -> tuple[Array | None, ...]:
        g2 = rows(g)
        return (
            (g2 @ weight).reshape(x_shape) if need_x else None,
            g2.T @ kept if kept is not None else None,
            g2.sum(axis=0) if need_bias else None,
        )

    return y.reshape(*x_shape[:-1], out), pullback


def _check_linear(x: Shape, weight: Shape, bias: Shape | None) -> None:
    if len(weight) != 2:
        raise ShapeError(f"linear: expected W (out, in), got shape {weight}")
    if not x or x[-1] != weight[1]:
        raise ShapeError(
            f"linear: expected x (..., {weight[1]}) for W of shape {weight}, got shape {x}"
        )
    if bias is not None and bias != weight[:1]:
        raise ShapeError(f"linear: expected b ({weight[0]},), got shape {bias}")


def embedding(weight: Array, *, ids: IntArray) -> Result:
    """W[ids] for W (count, D): ids (...) -> (..., D). The gradient of W adds up repeated ids."""
    check_ids(ids, weight.shape[0])

    shape = weight.shape

    def pullback(g: Array) -> Array:
        full = np.zeros(shape, g.dtype)
        np.add.at(full, ids, g)
        return full

    return weight[ids], (pullback,)


def check_ids(ids: IntArray, count: int) -> None:
    """Raise TokenError, naming the first place and the range, unless 0 <= ids < count."""
    if ids.dtype.kind not in "iu":
        raise TokenError(f"token ids: expected integers, got {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        place = tuple(int(i) for i in np.argwhere((ids < 0) | (ids >= count))[0])
        raise TokenError(
            f"token id {int(ids[place])} at position {place} "
            f"is outside the vocabulary 0..{count - 1}"
        )


def dropout(x: Array, *, keep: BoolArray, rate: float) -> Result:
    """x / (1 - rate) where `keep` holds, else 0 (Srivastava et al. 2014, scaled in training)."""
    scaled = keep * x.dtype.type(1 / (1 - rate))
    return x * scaled, (lambda g: g * scaled,)
