"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1, eq. 3).

    y = x Wᵀ + s (x Aᵀ) Bᵀ,        s = α / r

    x (..., in)   the input
    W (out, in)   the pretrained weight, frozen
    A (r, in)     starts as N(0, 0.01²)
    B (out, r)    starts at zero, so that training begins at the pretrained model

With g (..., out) the gradient of y, and sums over all rows of x and g:

    dA = (s g B)ᵀ x           (r, in)
    dB = (s g)ᵀ (x Aᵀ)        (out, r)
    dx = g W + s g B A        (..., in)

Merged, it is one plain weight again: W + s B A.

A starts as in the course. The plugin draws A from Kaiming's U(±1/√in) instead, as loralib and PEFT
do: x Aᵀ then has the same size whatever the width, and one learning rate suits all layers.
"""

from typing import Self

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
    """Return (dA, dB, dx) of the low-rank path s (x Aᵀ) Bᵀ alone; the frozen path adds g W to dx.

    grad_output (..., out), x (..., in), A (r, in), B (out, r).
    """
    return _gradients(grad_output, x, x @ A.T, A, B, scaling)


def _gradients(
    grad_output: Array, x: Array, Ax: Array, A: Array, B: Array, scaling: float
) -> tuple[Array, Array, Array]:
    """Return (dA, dB, dx), from x Aᵀ (..., r) as forward computed it."""
    # s g
    g = scaling * grad_output  # (..., out)
    # s g B
    grad_low = g @ B  # (..., r)
    # dA = (s g B)ᵀ x
    grad_A = rows(grad_low).T @ rows(x)  # (r, in)
    # dB = (s g)ᵀ (x Aᵀ)
    grad_B = rows(g).T @ rows(Ax)  # (out, r)
    # dx = s g B A
    grad_x = grad_low @ A  # (..., in)
    return grad_A, grad_B, grad_x


class LoRALayer:
    """The two small matrices A and B beside a frozen weight that the caller holds.

    dropout: kept as `dropout_prob` for the caller and not applied, as in the course: the layer has
        no training mode.
    rng: source of A; NumPy's global generator by default, which `np.random.seed` starts.

    `forward` keeps x, W and x Aᵀ in `cache` under "x", "W" and "Ax"; a subclass that fills it in a
    forward of its own may inherit `backward`. `backward` leaves A_grad and B_grad, which are zero
    before it.

    Raises:
        ValueError: a size below 1, or arrays whose shapes do not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features, rank=rank)
        self.in_features, self.out_features = in_features, out_features
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.dropout_prob = dropout
        self.A = normal(generator(rng), rank, in_features, std=0.01)
        self.B: Array = np.zeros((out_features, rank))
        self.A_grad: Array = np.zeros_like(self.A)
        self.B_grad: Array = np.zeros_like(self.B)
        self.cache: dict[str, Array] = {}

    @classmethod
    def of(cls, A: Array, B: Array, scaling: float = 1.0) -> Self:
        """Wrap trained matrices, without a copy: A (r, in), B (out, r)."""
        if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
            raise ValueError(f"expected A (r, in) and B (out, r), got {A.shape} and {B.shape}")
        rank, in_features = A.shape
        # A generator of its own leaves NumPy's global one alone: this draw is thrown away.
        layer = cls(in_features, len(B), rank, scaling * rank, rng=np.random.default_rng(0))
        layer.A, layer.B, layer.scaling = A, B, scaling
        layer.zero_grad()
        return layer

    def forward(self, x: Array, W: Array) -> Array:
        """Compute y: x (..., in), W (out, in) -> (..., out)."""
        check_shape("W", W, (self.out_features, self.in_features))
        check_width("x", x, self.in_features)
        # x Aᵀ
        Ax = x @ self.A.T  # (..., r)
        self.cache = {"x": x, "W": W, "Ax": Ax}
        # y = x Wᵀ + s (x Aᵀ) Bᵀ
        return x @ W.T + self.scaling * (Ax @ self.B.T)

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of x, through both paths: (..., out) -> (..., in)."""
        cache = remembered(self.cache or None)
        x, W, Ax = cache["x"], cache["W"], cache["Ax"]
        self.A_grad, self.B_grad, grad_x = _gradients(
            grad_output, x, Ax, self.A, self.B, self.scaling
        )
        # dx = g W + s g B A
        return grad_output @ W + grad_x

    def merge(self, W: Array) -> Array:
        """Return the weight with the update in it: (out, in)."""
        check_shape("W", W, (self.out_features, self.in_features))
        # W + s B A
        return W + self.scaling * (self.B @ self.A)

    def merge_weights(self, W: Array) -> Array:
        """Do the same as `merge`."""
        return self.merge(W)

    def parameters(self) -> list[Array]:
        """Return [A, B]."""
        return [self.A, self.B]

    def gradients(self) -> list[Array]:
        """Return [dA, dB]."""
        return [self.A_grad, self.B_grad]

    def zero_grad(self) -> None:
        """Set both gradients to zero."""
        self.A_grad, self.B_grad = np.zeros_like(self.A), np.zeros_like(self.B)

    def num_parameters(self) -> int:
        """Return r (in + out)."""
        return self.A.size + self.B.size

    def compression_ratio(self) -> float:
        """Return the share of the full weight: r (in + out) / (in · out)."""
        return self.num_parameters() / (self.in_features * self.out_features)


class LoRALinear:
    """A frozen affine layer with LoRA: y = x Wᵀ + s (x Aᵀ) Bᵀ + b.

    weight (out, in), bias (out,). `lora` holds the matrices and their gradients; lora_dropout and
    rng are those of `LoRALayer`.

    Raises:
        ValueError: a rank below 1, or arrays whose shapes do not fit.
    """

    def __init__(
        self,
        weight: Array,
        bias: Array | None = None,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        if weight.ndim != 2:
            raise ValueError(f"weight: expected shape (out, in), got {weight.shape}")
        self.out_features, self.in_features = weight.shape
        if bias is not None:
            check_shape("bias", bias, (self.out_features,))
        self.weight, self.bias = weight, bias
        self.lora = LoRALayer(
            self.in_features, self.out_features, lora_rank, lora_alpha, lora_dropout, rng=rng
        )

    def forward(self, x: Array) -> Array:
        """Compute y: (..., in) -> (..., out)."""
        y = self.lora.forward(x, self.weight)
        return y if self.bias is None else y + self.bias

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of x: (..., out) -> (..., in). The frozen bias gets none."""
        return self.lora.backward(grad_output)

    def merge(self) -> tuple[Array, Array | None]:
        """Return (weight, bias) of the plain layer with the same output."""
        return self.lora.merge(self.weight), self.bias

    def parameters(self) -> list[Array]:
        """Return [A, B]."""
        return self.lora.parameters()

    def gradients(self) -> list[Array]:
        """Return [dA, dB]."""
        return self.lora.gradients()

    def zero_grad(self) -> None:
        """Set both gradients to zero."""
        self.lora.zero_grad()

    def num_parameters(self) -> int:
        """Return the number of trained parameters: r (in + out)."""
        return self.lora.num_parameters()
