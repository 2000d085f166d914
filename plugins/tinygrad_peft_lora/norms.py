"""Norms of the rows of a weight with a low-rank update, without building the update.

‖w + s β A‖² = ‖w‖² + 2 s β (A wᵀ) + s² β (A Aᵀ) βᵀ      for the rows w of W and β of B
"""

from collections.abc import Callable

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Module

__all__ = ["Norms"]


class Norms:
    """‖W + s B A‖ per row, computed again only after a change.

    A frozen base changes when its arrays are replaced; A and B are compared by value, since an
    optimiser writes into them.
    """

    def __init__(self) -> None:
        self._base: tuple[object, list[Array]] = (None, [])
        self._squares: Array | None = None  # ‖w‖² of the base
        self._factors: tuple[Array, Array] | None = None
        self._norms: Array | None = None

    def __call__(
        self,
        base: object,
        weight: Callable[[], Array],
        images: Callable[[], Array],
        a: Array,
        b: Array,
        scaling: float,
    ) -> Array:
        """Return the norms (out,) for A (r, in) and B (out, r).

        `weight` returns the base's W (out, in), and `images` W Aᵀ (out, r).
        """
        if not self._is_known(base):
            self._squares = self._factors = None
        if self._squares is None:
            rows = weight()
            self._squares = np.einsum("oi,oi->o", rows, rows, dtype=np.float64)
        if self._factors is None or not all(map(np.array_equal, self._factors, (a, b))):
            inner = (2 * scaling) * images() + scaling**2 * (b @ (a @ a.T))  # (out, r)
            squares = self._squares + np.einsum("or,or->o", b, inner, dtype=np.float64)
            self._norms = np.sqrt(np.maximum(squares, np.finfo(a.dtype).tiny)).astype(a.dtype)
            self._factors = a.copy(), b.copy()
        assert self._norms is not None
        return self._norms

    def _is_known(self, base: object) -> bool:
        """Tell whether the base is frozen, and still has the same arrays."""
        parameters = list(base.parameters()) if isinstance(base, Module) else []
        (module, before), now = self._base, [p.data for p in parameters]
        self._base = base, now
        same = module is base and len(before) == len(now) and all(map(_is, before, now))
        return same and not any(p.requires_grad for p in parameters)


def _is(one: Array, other: Array) -> bool:
    return one is other
