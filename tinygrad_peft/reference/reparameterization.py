"""An embedding and a small network in place of a free matrix of virtual tokens.

    h₀ = E
    hᵢ₊₁ = f(hᵢ) Wᵢᵀ + bᵢ        f is left out for the first layer

    E (n, w₀)    Wᵢ (wᵢ₊₁, wᵢ)    bᵢ (wᵢ₊₁,)    the last h is the prompt or the prefix: (n, w_last)

Prefix tuning (Li and Liang 2021, arXiv 2101.00190, section 4.3) has two layers and tanh between
them, P-tuning (Liu et al. 2021, arXiv 2103.10385) three and ReLU. With gᵢ the gradient of hᵢ:

    dWᵢ = gᵢ₊₁ᵀ f(hᵢ)
    dbᵢ = Σ gᵢ₊₁
    gᵢ = (gᵢ₊₁ Wᵢ) ⊙ f'(hᵢ)
    dE = g₀
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tinygrad_peft.reference._basics import (
    Array,
    check_shape,
    check_sizes,
    generator,
    normal,
    remembered,
)
from tinygrad_peft.reference.activations import activation_named

__all__ = ["Reparameterization"]


class Reparameterization:
    """`length` rows of widths[0], through affine layers, to rows of widths[-1].

    Embedding and weights start as N(0, 0.02²), biases at zero.

    rng: source of the start; NumPy's global generator by default.

    `backward` leaves embedding_grad, weight_grads and bias_grads.

    Raises:
        ValueError: fewer than two widths, a size below 1, or an unknown activation.
    """

    def __init__(
        self,
        length: int,
        widths: Sequence[int],
        activation: str = "tanh",
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        if len(widths) < 2:
            raise ValueError(f"widths: expected two or more, got {list(widths)}")
        check_sizes(length=length, **{f"widths[{i}]": width for i, width in enumerate(widths)})
        draws = generator(rng)
        self.activation = activation_named(activation)
        self.embedding = normal(draws, length, widths[0], std=0.02)
        self.weights = [normal(draws, n, m, std=0.02) for m, n in pairwise(widths)]
        self.biases: list[Array] = [np.zeros(width) for width in widths[1:]]
        self.embedding_grad: Array = np.zeros_like(self.embedding)
        self.weight_grads: list[Array] = [np.zeros_like(weight) for weight in self.weights]
        self.bias_grads: list[Array] = [np.zeros_like(bias) for bias in self.biases]
        self._cache: list[Array] | None = None

    def forward(self) -> Array:
        """Compute the prompt or the prefix: (length, widths[-1])."""
        hidden = [self.embedding]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            # hᵢ₊₁ = f(hᵢ) Wᵢᵀ + bᵢ
            hidden.append(self._input(i, hidden[i]) @ weight.T + bias)
        self._cache = hidden
        return hidden[-1]

    def backward(self, grad_output: Array) -> None:
        """Set all gradients, from the gradient of the last h, (length, widths[-1])."""
        hidden = remembered(self._cache)
        check_shape("grad_output", grad_output, hidden[-1].shape)
        grad = grad_output
        for i in reversed(range(len(self.weights))):
            # dWᵢ = gᵢ₊₁ᵀ f(hᵢ)
            self.weight_grads[i] = grad.T @ self._input(i, hidden[i])
            # dbᵢ = Σ gᵢ₊₁
            self.bias_grads[i] = grad.sum(axis=0)
            # gᵢ = (gᵢ₊₁ Wᵢ) ⊙ f'(hᵢ)
            grad = grad @ self.weights[i]
            if i > 0:
                grad = grad * self.activation.slope(hidden[i])
        self.embedding_grad = grad

    def num_parameters(self) -> int:
        """Count the embedding, the weights and the biases."""
        return sum(array.size for array in (self.embedding, *self.weights, *self.biases))

    def _input(self, layer: int, hidden: Array) -> Array:
        return self.activation.value(hidden) if layer > 0 else hidden
