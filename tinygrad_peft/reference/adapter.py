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


class _Default(int):
    """A default size that differs from the same number given by the caller."""


BOTTLENECK = _Default(64)


class Adapter:
    """A small two-layer network beside the identity: (..., d_model) -> (..., d_model).

    bottleneck: another name of bottleneck_dim; give one of the two.
    activation: relu, gelu, gelu_tanh, silu or tanh. The course's "gelu" is gelu_tanh here, with
        the exact slope; "gelu" is x Φ(x), as papers and checkpoints have it.
    bias: train b_down and b_up. Otherwise they stay zero and are not counted.
    scaling: s, mostly for the parallel form.
    rng: source of the matrices; NumPy's global generator by default.

    `forward` keeps x, h and f(h) in `cache` under "x", "down" and "activated"; a subclass that
    fills it in a forward of its own may inherit `backward`. `backward` leaves W_down_grad,
    W_up_grad, b_down_grad and b_up_grad, which are zero before it.

    Raises:
        ValueError: both bottleneck and bottleneck_dim, a size below 1, an unknown activation, or an
            input of another width.
    """

    def __init__(
        self,
        d_model: int,
        bottleneck_dim: int = BOTTLENECK,
        activation: str = "relu",
        *,
        bottleneck: int | None = None,
        bias: bool = False,
        scaling: float = 1.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        if bottleneck is not None and bottleneck_dim is not BOTTLENECK:
            raise ValueError(
                "expected bottleneck or bottleneck_dim, "
                f"got bottleneck={bottleneck} and bottleneck_dim={bottleneck_dim}"
            )
        inner = int(bottleneck_dim) if bottleneck is None else bottleneck
        check_sizes(d_model=d_model, bottleneck_dim=inner)
        draws = generator(rng)
        self.d_model, self.bottleneck_dim = d_model, inner
        self.activation, self._f = activation, activation_named(activation)
        self.bias, self.scaling = bias, scaling
        self.W_down = normal(draws, d_model, inner, std=0.01)
        self.W_up = normal(draws, inner, d_model, std=0.01)
        self.b_down: Array = np.zeros(inner)
        self.b_up: Array = np.zeros(d_model)
        self.W_down_grad: Array = np.zeros_like(self.W_down)
        self.W_up_grad: Array = np.zeros_like(self.W_up)
        self.b_down_grad: Array = np.zeros_like(self.b_down)
        self.b_up_grad: Array = np.zeros_like(self.b_up)
        self.cache: dict[str, Array] = {}

    def forward(self, x: Array) -> Array:
        """Compute y: (..., d_model) -> (..., d_model)."""
        # y = x + s (f(h) U + c)
        return x + self.update(x)

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of x: (..., d_model) -> (..., d_model)."""
        # dx = g + dh Dᵀ
        return grad_output + self.update_backward(grad_output)

    def update(self, x: Array) -> Array:
        """Compute the part that is added to x: (..., d_model) -> (..., d_model)."""
        check_width("x", x, self.d_model)
        # h = x D + b
        h = x @ self.W_down + self.b_down  # (..., m)
        # f(h)
        activated = self._f.value(h)  # (..., m)
        self.cache = {"x": x, "down": h, "activated": activated}
        # s (f(h) U + c)
        return self.scaling * (activated @ self.W_up + self.b_up)

    def update_backward(self, grad_output: Array) -> Array:
        """Return the gradient of x without the residual: (..., d_model) -> (..., d_model)."""
        cache = remembered(self.cache or None)
        x, h, activated = cache["x"], cache["down"], cache["activated"]
        # s g
        g = self.scaling * grad_output  # (..., d)
        # dU = s f(h)ᵀ g
        self.W_up_grad = rows(activated).T @ rows(g)  # (m, d)
        # dc = s Σ g
        self.b_up_grad = rows(g).sum(axis=0)  # (d,)
        # dh = s (g Uᵀ) ⊙ f'(h)
        dh = (g @ self.W_up.T) * self._f.slope(h)  # (..., m)
        # dD = xᵀ dh
        self.W_down_grad = rows(x).T @ rows(dh)  # (d, m)
        # db = Σ dh
        self.b_down_grad = rows(dh).sum(axis=0)  # (m,)
        # dh Dᵀ
        return dh @ self.W_down.T  # (..., d)

    def parameters(self) -> list[Array]:
        """Return [W_down, W_up], and [b_down, b_up] after them if they are trained."""
        return [self.W_down, self.W_up, *([self.b_down, self.b_up] if self.bias else [])]

    def gradients(self) -> list[Array]:
        """Return the gradients of `parameters`, in the same order."""
        biases = [self.b_down_grad, self.b_up_grad] if self.bias else []
        return [self.W_down_grad, self.W_up_grad, *biases]

    def num_parameters(self) -> int:
        """Return 2 d m, and d + m more with biases."""
        return sum(array.size for array in self.parameters())
