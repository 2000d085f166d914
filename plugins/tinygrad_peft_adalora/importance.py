"""The importance of the elements of a weight (Zhang et al. 2023, arXiv 2303.10512, eq. 8 to 11).

Of each element w with its gradient dw, averaged over the steps of training:

    i = |w dw|                            the sensitivity of one step
    I ← β₁ I + (1 - β₁) i                 the smoothed sensitivity
    U ← β₂ U + (1 - β₂) |i - I|           its uncertainty
    score(w) = I U
"""

from typing import NamedTuple, Self

import numpy as np

from tinygrad_peft.arrays import Array

__all__ = ["Importance"]


class Importance(NamedTuple):
    """I and U of a weight, arrays of its shape."""

    sensitivity: Array
    uncertainty: Array

    @classmethod
    def none(cls, like: Array) -> Self:
        """Return the averages before the first step: zero."""
        return cls(np.zeros_like(like), np.zeros_like(like))

    def after(self, w: Array, grad: Array, beta1: float, beta2: float) -> "Importance":
        """Return the averages after one more step."""
        i = np.abs(w * grad)
        sensitivity = beta1 * self.sensitivity + (1 - beta1) * i
        change = np.abs(i - sensitivity)
        return Importance(sensitivity, beta2 * self.uncertainty + (1 - beta2) * change)

    def score(self) -> Array:
        """Compute I U for each element."""
        return self.sensitivity * self.uncertainty
