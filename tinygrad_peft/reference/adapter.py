"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751, section 2.1).

    y = x + s (f(x D + b) U + c)

    x (..., d)   a sublayer's output
    D (d, m)     W_down: N(0, 0.01²)          b (m,)   b_down: zero
    U (m, d)     W_up: N(0, 0.01²)            c (d,)   b_up: zero

Both matrices start small, so that y is nearly x. With h = x D + b, g (..., d) the gradient of y,
and sums over all rows:

    dU = s f(h)ᵀ g               (m, d)          dc = s Σ g      (d,)
    dh = s (g Uᵀ) ⊙ f'(h)        (..., m)
    dD = xᵀ dh                   (d, m)          db = Σ dh       (m,)
    dx = g + dh Dᵀ               (..., d)

In the parallel form (He et al. 2022, arXiv 2110.04366, table 1) the adapter stands beside a
sublayer and reads its input: y = sublayer(x) + update(x). `update` and `update_backward` are the
formulas above without the residual: no x in y, no g in dx.
"""

import numpy as np

from tinygrad_peft.reference._basics import (
    Array,
    check_sizes,
    check_width,
    generator,
    normal,
    remembered,
    rows,
)
from tinygrad_peft.reference.activations import activation_named

__all__ = ["Adapter"]


class Adapter:
    """A small two-layer network beside the identity: (..., d_model) -> (..., d_model).

    bottleneck: another name of bottleneck_dim.
    activation: relu, gelu, gelu_tanh, silu or tanh.
    bias: whether b_down and b_up are trained; otherwise they stay zero and are not counted.
    scaling: s, for the parallel form mostly.

    `backward` leaves W_down_grad, W_up_grad, b_down_grad and b_up_grad, which are zero before it.

    Raises:
        ValueError: a size below 1, an unknown activation, or an input of another width.
    """

    def __init__(
        self,
        d_model: int,
        bottleneck_dim: int = 64,
        activation: str = "relu",
        *,
        bottleneck: int | None = None,
        bias: bool = False,
        scaling: float = 1.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        inner = bottleneck_dim if bottleneck is None else bottleneck
        check_sizes(d_model=d_model, bottleneck_dim=inner)
        rng = generator(rng)
        self.d_model, self.bottleneck_dim = d_model, inner
        self.activation = activation_named(activation)
        self.bias, self.scaling = bias, scaling
        self.W_down = normal(rng, d_model, inner, std=0.01)
        self.W_up = normal(rng, inner, d_model, std=0.01)
        self.b_down: Array = np.zeros(inner)
        self.b_up: Array = np.zeros(d_model)
        self.W_down_grad: Array = np.zeros_like(self.W_down)
        self.W_up_grad: Array = np.zeros_like(self.W_up)
        self.b_down_grad: Array = np.zeros_like(self.b_down)
        self.b_up_grad: Array = np.zeros_like(self.b_up)
        self._cache: tuple[Array, Array] | None = None

    def forward(self, x: Array) -> Array:
        """(..., d_model) -> (..., d_model)."""
        # y = x + s (f(h) U + c)
        return x + self.update(x)

    def backward(self, grad_output: Array) -> Array:
        """The gradient of x: (..., d_model) -> (..., d_model)."""
        # dx = g + dh Dᵀ
        return grad_output + self.update_backward(grad_output)

    def update(self, x: Array) -> Array:
        """What the adapter adds: (..., d_model) -> (..., d_model)."""
        check_width("x", x, self.d_model)
        # h = x D + b
        h = x @ self.W_down + self.b_down  # (..., m)
        self._cache = x, h
        # s (f(h) U + c)
        return self.scaling * (self.activation.value(h) @ self.W_up + self.b_up)

    def update_backward(self, grad_output: Array) -> Array:
        """The gradient of x through the adapter alone: (..., d_model) -> (..., d_model)."""
        x, h = remembered(self._cache)
        # s g
        g = self.scaling * grad_output  # (..., d)
        # dU = s f(h)ᵀ g
        self.W_up_grad = rows(self.activation.value(h)).T @ rows(g)  # (m, d)
        # dc = s Σ g
        self.b_up_grad = rows(g).sum(axis=0)  # (d,)
        # dh = s (g Uᵀ) ⊙ f'(h)
        dh = (g @ self.W_up.T) * self.activation.slope(h)  # (..., m)
        # dD = xᵀ dh
        self.W_down_grad = rows(x).T @ rows(dh)  # (d, m)
        # db = Σ dh
        self.b_down_grad = rows(dh).sum(axis=0)  # (m,)
        # dh Dᵀ
        return dh @ self.W_down.T  # (..., d)

    def num_parameters(self) -> int:
        """2 d m, and d + m for the biases."""
        biases = self.b_down.size + self.b_up.size if self.bias else 0
        return self.W_down.size + self.W_up.size + biases
