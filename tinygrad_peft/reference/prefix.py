"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190, section 4.2).

    y = attention(q, [Pk; k], [Pv; v])        in every layer, [;] along the tokens

    q (B, T, H, D)    k, v (B, S, K, D)    Pk, Pv (P, K, D), the same for all rows of a batch

Every query sees the whole prefix. Without a batch, the axis B is missing throughout. With dk and dv
the gradients of the keys and values with the prefix before them:

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
    over_batch,
    remembered,
)
from tinygrad_peft.reference.attention import attention, attention_backward, mask_bias

__all__ = ["PrefixTuning"]


class PrefixTuning:
    """Trained keys and values for each layer: `prefix` (layers, 2, length, heads, d_head).

    It starts as N(0, 0.01²).

    num_heads: the key heads K, where queries have more.
    rng: source of the start; NumPy's global generator by default.

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
        self.num_layers, self.num_heads, self.d_head = num_layers, num_heads, d_head
        self.prefix_length = prefix_length
        self.prefix = normal(
            generator(rng), num_layers, 2, prefix_length, num_heads, d_head, std=0.01
        )
        self.prefix_grad: Array = np.zeros_like(self.prefix)
        self._cache: dict[int, tuple[Array, Array, Array, Array]] = {}

    def get_prefix(self, layer_idx: int) -> tuple[Array, Array]:
        """Return (keys, values) of a layer: (length, heads, d_head) each."""
        keys, values = self.prefix[layer_idx]
        return keys, values

    def forward(
        self, layer_idx: int, q: Array, k: Array, v: Array, mask: npt.NDArray[Any] | None = None
    ) -> Array:
        """Return a layer's attention, with its prefix: (B, T, H, D).

        The mask broadcasts to (..., T, S), without the prefix, in a form that `attention` takes.
        """
        keys, values = self.get_prefix(layer_idx)
        for name, array in (("k", k), ("v", v)):
            check_shape(name, array, (*q.shape[:-3], *k.shape[-3:-2], *keys.shape[1:]))
        wide = None if mask is None else self._widen(mask_bias(mask), k.shape[-3])
        # [Pk; k],  [Pv; v]
        k, v = _prepend(keys, k), _prepend(values, v)  # (B, P + S, K, D)
        out, p = attention(q, k, v, wide)
        self._cache[layer_idx] = q, k, v, p
        return out

    def backward(self, layer_idx: int, grad_output: Array) -> tuple[Array, Array, Array]:
        """Return (dq, dk, dv) of a layer, from the gradient of its attention (B, T, H, D)."""
        dq, dk, dv = attention_backward(grad_output, *remembered(self._cache.get(layer_idx)))
        length = self.prefix_length
        # dPk = Σ dk's first P tokens
        self.prefix_grad[layer_idx, 0] = over_batch(dk[..., :length, :, :], 3)
        # dPv = Σ dv's first P tokens
        self.prefix_grad[layer_idx, 1] = over_batch(dv[..., :length, :, :], 3)
        return dq, dk[..., length:, :, :], dv[..., length:, :, :]

    def parameters(self) -> list[Array]:
        """Return [prefix]."""
        return [self.prefix]

    def gradients(self) -> list[Array]:
        """Return [the gradient of prefix]."""
        return [self.prefix_grad]

    def num_parameters(self) -> int:
        """Return 2 L P K D."""
        return self.prefix.size

    def _widen(self, bias: Array, length: int) -> Array:
        """Let every query see the prefix: (..., T, S) -> (..., T, P + S)."""
        if bias.shape[-1:] not in {(1,), (length,)}:
            raise ValueError(f"mask: expected shape (..., T, {length}), got {bias.shape}")
        bias = np.broadcast_to(bias, (*bias.shape[:-1], length))
        seen = np.zeros((*bias.shape[:-1], self.prefix_length))
        return np.concatenate([seen, bias], axis=-1)


def _prepend(prefix: Array, x: Array) -> Array:
    """Put (P, K, D) in front of (B, S, K, D)."""
    return np.concatenate([np.broadcast_to(prefix, (*x.shape[:-3], *prefix.shape)), x], axis=-3)
