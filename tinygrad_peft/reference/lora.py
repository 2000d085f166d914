"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1, eq. 3).

    y = x Wᵀ + s (x Aᵀ) Bᵀ,        s = α / r

    x (..., in)   the input
    W (out, in)   the pretrained weight, frozen
    A (r, in)     starts as N(0, 0.02²)
    B (out, r)    starts at zero, so that training begins at the pretrained model

With g (..., out) the gradient of y, and sums over all rows of x and g:

    dA = s (g B)ᵀ x           (r, in)
    dB = s gᵀ (x Aᵀ)          (out, r)
    dx = g W + s (g B) A      (..., in)

Merged, it is one plain weight again: W + s B A.
"""

import numpy as np

from tinygrad_peft.reference._basics import (
    Array,
    check_shape,
    check_sizes,
    check_width,
    generator,
    normal,
    remembered,
    rows,
)

__all__ = ["LoRALayer", "LoRALinear", "lora_backward"]


def lora_backward(
    grad_output: Array, x: Array, A: Array, B: Array, scaling: float
) -> tuple[Array, Array, Array]:
    """(dA, dB, dx) of the low-rank path s (x Aᵀ) Bᵀ alone: dx lacks the frozen path's g W.

    grad_output (..., out), x (..., in), A (r, in), B (out, r).
    """
    # s g B
    grad_low = scaling * (grad_output @ B)  # (..., r)
    # dA = s (g B)ᵀ x
    grad_A = rows(grad_low).T @ rows(x)  # (r, in)
    # dB = s gᵀ (x Aᵀ)
    grad_B = scaling * rows(grad_output).T @ rows(x @ A.T)  # (out, r)
    # dx = s (g B) A
    grad_x = grad_low @ A  # (..., in)
    return grad_A, grad_B, grad_x


class LoRALayer:
    """The two small matrices A and B beside a frozen weight that the caller holds.

    `backward` leaves A_grad and B_grad, which are zero before it.

    Raises:
        ValueError: a size below 1, or arrays whose shapes do not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 8,
        alpha: float = 16.0,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features, rank=rank)
        self.in_features, self.out_features = in_features, out_features
        self.scaling = alpha / rank
        self.A = normal(generator(rng), rank, in_features)
        self.B: Array = np.zeros((out_features, rank))
        self.A_grad: Array = np.zeros_like(self.A)
        self.B_grad: Array = np.zeros_like(self.B)
        self._cache: tuple[Array, Array] | None = None

    def forward(self, x: Array, W: Array) -> Array:
        """x (..., in), W (out, in) -> (..., out)."""
        check_shape("W", W, (self.out_features, self.in_features))
        check_width("x", x, self.in_features)
        self._cache = x, W
        # y = x Wᵀ + s (x Aᵀ) Bᵀ
        return x @ W.T + self.scaling * ((x @ self.A.T) @ self.B.T)

    def backward(self, grad_output: Array) -> Array:
        """The gradient of x, through both paths: (..., out) -> (..., in)."""
        x, W = remembered(self._cache)
        self.A_grad, self.B_grad, grad_x = lora_backward(
            grad_output, x, self.A, self.B, self.scaling
        )
        # dx = g W + s (g B) A
        return grad_output @ W + grad_x

    def merge(self, W: Array) -> Array:
        """The weight with the update in it: (out, in)."""
        check_shape("W", W, (self.out_features, self.in_features))
        # W + s B A
        return W + self.scaling * (self.B @ self.A)

    def merge_weights(self, W: Array) -> Array:
        """The same as `merge`."""
        return self.merge(W)

    def num_parameters(self) -> int:
        """r (in + out)."""
        return self.A.size + self.B.size


class LoRALinear:
    """A frozen affine layer with LoRA: y = x Wᵀ + s (x Aᵀ) Bᵀ + b.

    weight (out, in), bias (out,). The matrices and their gradients are those of `lora`.

    Raises:
        ValueError: a rank below 1, or arrays whose shapes do not fit.
    """

    def __init__(
        self,
        weight: Array,
        bias: Array | None = None,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        if weight.ndim != 2:
            raise ValueError(f"weight: expected shape (out, in), got {weight.shape}")
        out_features, in_features = weight.shape
        if bias is not None:
            check_shape("bias", bias, (out_features,))
        self.weight, self.bias = weight, bias
        self.lora = LoRALayer(in_features, out_features, lora_rank, lora_alpha, rng=rng)

    def forward(self, x: Array) -> Array:
        """(..., in) -> (..., out)."""
        y = self.lora.forward(x, self.weight)
        return y if self.bias is None else y + self.bias

    def backward(self, grad_output: Array) -> Array:
        """The gradient of x: (..., out) -> (..., in). The frozen bias gets none."""
        return self.lora.backward(grad_output)

    def merge(self) -> tuple[Array, Array | None]:
        """(weight, bias) of the plain layer with the same output."""
        return self.lora.merge(self.weight), self.bias

    def num_parameters(self) -> int:
        """What is trained: r (in + out)."""
        return self.lora.num_parameters()
