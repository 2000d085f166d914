"""Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2) with LoRA on it.

    q, k, v = x Wqᵀ, x Wkᵀ, x Wvᵀ, cut into heads
    p = softmax(q kᵀ / √D + mask)
    y = (p v, heads side by side) Woᵀ

    x (B, T, d)    W (d, d)    q (B, T, H, D)    k, v (B, S, K, D)    p (B, H, T, S)

Without a batch, the axis B is missing throughout, and with more axes they all stand for it.
There are H query heads and K key heads; each key head serves H / K query heads, and mostly K = H.
With g the gradient of the output o = p v:

    dv = pᵀ g
    dp = g vᵀ
    ds = p ⊙ (dp - Σ dp ⊙ p)         the softmax, summed over keys
    dq = ds k / √D
    dk = dsᵀ q / √D
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinygrad_peft.reference._basics import (
    Array,
    check_heads,
    check_shape,
    check_sizes,
    check_tokens,
    generator,
    normal,
    remembered,
    unknown,
)
from tinygrad_peft.reference.lora import LoRALinear

__all__ = [
    "LoRAMultiHeadAttention",
    "apply_lora_to_attention",
    "attention",
    "attention_backward",
    "mask_bias",
]

PROJECTIONS = ("q", "k", "v", "o")
TARGETS = ("q", "v")
MASKED = -1e9  # finite, so that a row in which all is masked stays finite
LARGE = 1e4  # from here on a negative bias leaves nothing of a probability


def attention(
    q: Array, k: Array, v: Array, mask: npt.NDArray[Any] | None = None
) -> tuple[Array, Array]:
    """Return (output, probabilities): (B, T, H, D) and (B, H, T, S).

    q (B, T, H, D), k and v (B, S, K, D), all with or without B. The mask broadcasts to the
    probabilities, in one of the forms that `mask_bias` takes.

    Raises:
        ValueError: K does not divide H, or a mask that does not fit or means nothing.
    """
    k, v = _for_each_query_head(k, q), _for_each_query_head(v, q)
    # q kᵀ / √D + mask
    scores = np.einsum("...thd,...shd->...hts", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + _fitting(mask_bias(mask), scores)
    # softmax, from the largest score down so that nothing overflows
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p = powers / powers.sum(axis=-1, keepdims=True)  # (B, H, T, S)
    # o = p v
    return np.einsum("...hts,...shd->...thd", p, v), p


def attention_backward(
    grad_output: Array, q: Array, k: Array, v: Array, p: Array
) -> tuple[Array, Array, Array]:
    """Return (dq, dk, dv), from the gradient of the output (B, T, H, D) and the probabilities."""
    key_heads = k.shape[-2]
    k, v = _for_each_query_head(k, q), _for_each_query_head(v, q)
    # dv = pᵀ g
    dv = np.einsum("...hts,...thd->...shd", p, grad_output)
    # dp = g vᵀ
    dp = np.einsum("...thd,...shd->...hts", grad_output, v)
    # ds = p ⊙ (dp - Σ dp ⊙ p)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
    # dq = ds k / √D
    dq = np.einsum("...hts,...shd->...thd", ds, k) / math.sqrt(q.shape[-1])
    # dk = dsᵀ q / √D
    dk = np.einsum("...hts,...thd->...shd", ds, q) / math.sqrt(q.shape[-1])
    return dq, _for_each_key_head(dk, key_heads), _for_each_key_head(dv, key_heads)


def mask_bias(mask: npt.NDArray[Any]) -> Array:
    """Return the numbers that a mask adds to the scores: 0 where a query may look, else -1e9.

    A mask is, by its values and whatever its dtype,

        True and False, or 1 and 0     1 where a query may look
        0 and -inf, or -1e4 and less   to be added to the scores: 0 where a query may look

    A mask of zeros alone could be either. It is taken as the second and hides nothing, as the
    course's causal mask of one token does: a mask that hides everything is of no use.

    Raises:
        ValueError: any other values.
    """
    values = np.asarray(mask)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"mask: expected booleans or numbers, got {values.dtype}")
    one, zero = values == 1, values == 0
    hidden = ~one if one.any() or values.dtype == bool else values <= -LARGE
    unclear = values[~(one | zero) if one.any() else ~(zero | hidden)]
    if unclear.size:
        raise ValueError(
            "mask: expected booleans, or 1 where a query may look and 0 elsewhere, or 0 where it "
            f"may look and -inf elsewhere; got {unclear.flat[0]}"
            f"{' beside 1' if one.any() else ''}"
        )
    return np.where(hidden, MASKED, 0.0)


def _fitting(bias: Array, scores: Array) -> Array:
    """Return a bias in the dtype of the scores, once it is known to broadcast to them."""
    try:
        fits = np.broadcast_shapes(bias.shape, scores.shape) == scores.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask: expected a shape that broadcasts to {scores.shape}, got {bias.shape}"
        )
    return bias.astype(scores.dtype)


def _for_each_query_head(x: Array, q: Array) -> Array:
    """Repeat each key head H / K times, side by side: (B, S, K, D) -> (B, S, H, D)."""
    heads, key_heads = q.shape[-2], x.shape[-2]
    if heads % key_heads:
        raise ValueError(f"{key_heads} key heads do not divide {heads} query heads")
    return np.repeat(x, heads // key_heads, axis=-2)


def _for_each_key_head(grad: Array, heads: int) -> Array:
    """Sum over the query heads that a key head serves: (B, S, H, D) -> (B, S, K, D)."""
    *batch, _, size = grad.shape
    total: Array = grad.reshape(*batch, heads, -1, size).sum(axis=-2)
    return total


def apply_lora_to_attention(
    wq: Array,
    wk: Array,
    wv: Array,
    wo: Array,
    rank: int = 8,
    alpha: float = 16.0,
    target_modules: Sequence[str] | None = None,
    *,
    rng: np.random.Generator | None = None,
) -> dict[str, LoRALinear | Array]:
    """Return the four projections as q, k, v, o: a LoRALinear for each target, else the weight.

    target_modules: any of q, k, v, o; q and v by default.

    Raises:
        ValueError: an unknown target, or a rank below 1.
    """
    weights = dict(zip(PROJECTIONS, (wq, wk, wv, wo), strict=True))
    return _adapted(weights, rank, alpha, target_modules, rng)


def _adapted(
    weights: Mapping[str, Array],
    rank: int,
    alpha: float,
    target_modules: Sequence[str] | None,
    rng: np.random.Generator | None,
) -> dict[str, LoRALinear | Array]:
    targets = TARGETS if target_modules is None else target_modules
    for name in targets:
        if name not in PROJECTIONS:
            raise unknown("target", name, PROJECTIONS)
    return {
        name: LoRALinear(weight, None, rank, alpha, rng=rng) if name in targets else weight
        for name, weight in weights.items()
    }


class LoRAMultiHeadAttention:
    """Self-attention with frozen projections and LoRA on some: (B, T, d_model) -> the same.

    x may also come without a batch, (T, d_model).

    weights: the projections q, k, v, o of (d_model, d_model) each; drawn from N(0, 0.02²) if left
        out.
    rng: source of weights and matrices; NumPy's global generator by default.

    `projections` holds the layers as `apply_lora_to_attention` returns them; after `backward`, each
    adapted one has its gradients.

    Raises:
        ValueError: heads that do not divide d_model, a size below 1, an unknown target, or weights
            that do not fit.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rank: int = 8,
        target_modules: Sequence[str] | None = TARGETS,
        alpha: float = 16.0,
        weights: Mapping[str, Array] | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes(d_model=d_model, n_heads=n_heads, rank=rank)
        check_heads(d_model, n_heads)
        if weights is None:
            draws = generator(rng)
            weights = {name: normal(draws, d_model, d_model, std=0.02) for name in PROJECTIONS}
        if set(weights) != set(PROJECTIONS):
            raise ValueError(
                f"weights: expected {', '.join(PROJECTIONS)}, got {', '.join(weights)}"
            )
        for name, weight in weights.items():
            check_shape(f"weights[{name!r}]", weight, (d_model, d_model))
        self.d_model, self.n_heads = d_model, n_heads
        self.projections = _adapted(weights, rank, alpha, target_modules, rng)
        self._cache: tuple[Array, Array, Array, Array] | None = None

    def forward(self, x: Array, mask: npt.NDArray[Any] | None = None) -> Array:
        """Compute y: x (B, T, d_model), and a mask as `attention` takes it -> (B, T, d_model)."""
        check_tokens("x", x, self.d_model)
        q, k, v = (self._cut(self._project(name, x)) for name in ("q", "k", "v"))
        out, p = attention(q, k, v, mask)
        self._cache = q, k, v, p
        # y = (p v, heads side by side) Woᵀ
        return self._project("o", out.reshape(x.shape))

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of x: (B, T, d_model) -> (B, T, d_model)."""
        q, k, v, p = remembered(self._cache)
        grad_out = self._cut(self._project_back("o", grad_output))
        grads = attention_backward(grad_out, q, k, v, p)
        # dx is the sum of the gradients through q, k and v
        through = [
            self._project_back(name, grad.reshape(grad_output.shape))
            for name, grad in zip(("q", "k", "v"), grads, strict=True)
        ]
        return through[0] + through[1] + through[2]

    def merge_lora(self) -> None:
        """Fold each update into its weight: the same output, with nothing left to train."""
        self.projections = {
            name: layer.merge()[0] if isinstance(layer, LoRALinear) else layer
            for name, layer in self.projections.items()
        }

    def count_trainable_params(self) -> int:
        """Return 2 r d_model for each target."""
        layers = self.projections.values()
        return sum(layer.num_parameters() for layer in layers if isinstance(layer, LoRALinear))

    def _cut(self, x: Array) -> Array:
        """Cut into heads: (B, T, d_model) -> (B, T, H, D)."""
        return x.reshape(*x.shape[:-1], self.n_heads, -1)

    def _project(self, name: str, x: Array) -> Array:
        layer = self.projections[name]
        return layer.forward(x) if isinstance(layer, LoRALinear) else x @ layer.T

    def _project_back(self, name: str, grad: Array) -> Array:
        layer = self.projections[name]
        return layer.backward(grad) if isinstance(layer, LoRALinear) else grad @ layer
