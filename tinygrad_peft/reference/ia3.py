"""(IA)³: learned factors for inner activations (Liu et al. 2022, arXiv 2205.05638, section 3.3).

    y = l ⊙ (x Wᵀ + b),   l (out,)      what the layers of keys and values give
    y = (l ⊙ x) Wᵀ + b,   l (in,)       what the feed-forward network's second layer is given

    x (..., in)   the input
    W (out, in)   the pretrained weight, frozen, as b (out,) is
    l             starts at one, so that training begins at the pretrained model

With g (..., out) the gradient of y, and sums over all rows of x and g:

    dl = Σ g ⊙ (x Wᵀ + b)      dx = (l ⊙ g) W        for factors of the output
    dl = Σ x ⊙ (g W)           dx = l ⊙ (g W)        for factors of the input

Merged, it is one plain layer again: the rows of W and b times l, or the columns of W times l.
"""

import numpy as np

from tinygrad_peft.reference._basics import Array, check_shape, check_width, remembered, rows

__all__ = ["IA3Linear"]


class IA3Linear:
    """A frozen affine layer, whose output or input is multiplied by learned factors.

    weight (out, in), bias (out,). `backward` leaves scale_grad, which is zero before it.

    Raises:
        ValueError: arrays whose shapes do not fit.
    """

    def __init__(self, weight: Array, bias: Array | None = None, *, on_input: bool = False) -> None:
        if weight.ndim != 2:
            raise ValueError(f"weight: expected shape (out, in), got {weight.shape}")
        out_features, in_features = weight.shape
        if bias is not None:
            check_shape("bias", bias, (out_features,))
        self.weight, self.bias, self.on_input = weight, bias, on_input
        self.scale: Array = np.ones(in_features if on_input else out_features, weight.dtype)
        self.scale_grad: Array = np.zeros_like(self.scale)
        self._cache: Array | None = None

    def forward(self, x: Array) -> Array:
        """(..., in) -> (..., out)."""
        check_width("x", x, self.weight.shape[1])
        self._cache = x
        if self.on_input:
            # y = (l ⊙ x) Wᵀ + b
            return self._affine(self.scale * x)
        # y = l ⊙ (x Wᵀ + b)
        return self.scale * self._affine(x)

    def backward(self, grad_output: Array) -> Array:
        """Compute the gradient of x: (..., out) -> (..., in)."""
        x = remembered(self._cache)
        if self.on_input:
            # g W
            through = grad_output @ self.weight  # (..., in)
            # dl = Σ x ⊙ (g W)
            self.scale_grad = rows(x * through).sum(axis=0)
            # dx = l ⊙ (g W)
            return self.scale * through
        # dl = Σ g ⊙ (x Wᵀ + b)
        self.scale_grad = rows(grad_output * self._affine(x)).sum(axis=0)
        # dx = (l ⊙ g) W
        return (self.scale * grad_output) @ self.weight

    def merge(self) -> tuple[Array, Array | None]:
        """(weight, bias) of the plain layer with the same output."""
        if self.on_input:
            # W diag(l), b
            return self.weight * self.scale, self.bias
        # diag(l) W, l ⊙ b
        bias = None if self.bias is None else self.scale * self.bias
        return self.scale[:, None] * self.weight, bias

    def num_parameters(self) -> int:
        """Count the factors: the width of the output, or of the input."""
        return self.scale.size

    def _affine(self, x: Array) -> Array:
        y: Array = x @ self.weight.T
        return y if self.bias is None else y + self.bias
