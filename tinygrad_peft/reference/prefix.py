"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190, section 4.2).

    y = attention(q, [Pk; k], [Pv; v])        in every layer, [;] along the tokens

    q (B, T, H, D)    k, v (B, S, K, D)    Pk, Pv (P, K, D), the same for all rows of a batch

Every query sees the whole prefix. With dk and dv the gradients of what attention was given:

    dPk = Σ over the batch of dk's first P tokens        (P, K, D)
    dPv = Σ over the batch of dv's first P tokens        (P, K, D)
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tinygrad_peft.reference._basics import (
    Array,
    check_shape,
    check_sizes,
    generator,
    normal,
    remembered,
)
from tinygrad_peft.reference.attention import attention, attention_backward

__all__ = ["PrefixTuning"]


class PrefixTuning:
    """Trained keys and values for each layer: `prefix` (layers, 2, length, heads, d_head).

    num_heads: the key heads K, where queries have more.

    `backward` leaves prefix_grad, layer by layer; it is zero before it.

    Raises:
        ValueError: a size below 1.
        IndexError: a layer that is not there.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        d_head: int,
        prefix_length: int = 10,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes(
            num_layers=num_layers, num_heads=num_heads, d_head=d_head, prefix_length=prefix_length
        )
        self.prefix_length = prefix_length
        self.prefix = normal(generator(rng), num_layers, 2, prefix_length, num_heads, d_head)
        self.prefix_grad: Array = np.zeros_like(self.prefix)
        self._cache: dict[int, tuple[Array, Array, Array, Array]] = {}

    def get_prefix(self, layer_idx: int) -> tuple[Array, Array]:
        """(keys, values) of a layer: (length, heads, d_head) each."""
        keys, values = self.prefix[layer_idx]
        return keys, values

    def forward(
        self, layer_idx: int, q: Array, k: Array, v: Array, mask: npt.NDArray[Any] | None = None
    ) -> Array:
        """A layer's attention, with its prefix: (B, T, H, D). The mask (..., T, S) is for k."""
        keys, values = self.get_prefix(layer_idx)
        check_shape("k", k, (len(q), k.shape[1], *keys.shape[1:]))
        # [Pk; k],  [Pv; v]
        k, v = _prepend(keys, k), _prepend(values, v)  # (B, P + S, K, D)
        out, p = attention(q, k, v, None if mask is None else self._widen(mask))
        self._cache[layer_idx] = q, k, v, p
        return out

    def backward(self, layer_idx: int, grad_output: Array) -> tuple[Array, Array, Array]:
        """(dq, dk, dv) of a layer, from the gradient of its attention (B, T, H, D)."""
        dq, dk, dv = attention_backward(grad_output, *remembered(self._cache.get(layer_idx)))
        length = self.prefix_length
        # dPk = Σ dk's first P tokens
        self.prefix_grad[layer_idx, 0] = dk[:, :length].sum(axis=0)
        # dPv = Σ dv's first P tokens
        self.prefix_grad[layer_idx, 1] = dv[:, :length].sum(axis=0)
        return dq, dk[:, length:], dv[:, length:]

    def num_parameters(self) -> int:
        """2 L P K D."""
        return self.prefix.size

    def _widen(self, mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., T, S) -> (..., T, P + S): the prefix is seen by all."""
        seen = True if mask.dtype == bool else 0
        left = [(0, 0)] * (mask.ndim - 1)
        return np.pad(mask, [*left, (self.prefix_length, 0)], constant_values=seen)


def _prepend(prefix: Array, x: Array) -> Array:
    """(P, K, D) in front of (B, S, K, D)."""
    return np.concatenate([np.broadcast_to(prefix, (len(x), *prefix.shape)), x], axis=1)
