"""Element-wise arithmetic with broadcasting, matrix products, and the elementary functions."""

import math

import numpy as np

from tinygrad_peft.arrays import Array, Shape, unbroadcast
from tinygrad_peft.ops._result import Pullback, Result

__all__ = [
    "add",
    "div",
    "erf",
    "exp",
    "log",
    "matmul",
    "maximum",
    "mul",
    "neg",
    "power",
    "sqrt",
    "sub",
    "tanh",
]


def add(a: Array, b: Array) -> Result:
    """a + b, with d(a + b) = da + db."""
    return a + b, (_sum_to(a.shape), _sum_to(b.shape))


def sub(a: Array, b: Array) -> Result:
    """a - b, with d(a - b) = da - db."""
    shape = b.shape
    return a - b, (_sum_to(a.shape), lambda g: unbroadcast(-g, shape))


def mul(a: Array, b: Array) -> Result:
    """a b, with d(ab) = b da + a db."""
    left, right = a.shape, b.shape
    return a * b, (lambda g: unbroadcast(g * b, left), lambda g: unbroadcast(g * a, right))


def div(a: Array, b: Array) -> Result:
    """a / b, with d(a/b) = da / b - a db / b²."""
    left, right = a.shape, b.shape
    return a / b, (
        lambda g: unbroadcast(g / b, left),
        lambda g: unbroadcast(-g * a / (b * b), right),
    )


def neg(a: Array) -> Result:
    """-a."""
    return -a, (lambda g: -g,)


def power(a: Array, *, exponent: float) -> Result:
    """aⁿ for a constant n, with d(aⁿ) = n aⁿ⁻¹ da."""
    if not exponent:  # avoids 0 · 0⁻¹ at zero
        return np.ones_like(a), (np.zeros_like,)
    return a**exponent, (lambda g: g * (exponent * a ** (exponent - 1)),)


def maximum(a: Array, b: Array) -> Result:
    """max(a, b); where they are equal the gradient goes to a."""
    first, left, right = a >= b, a.shape, b.shape
    return np.maximum(a, b), (
        lambda g: unbroadcast(g * first, left),
        lambda g: unbroadcast(g * ~first, right),
    )


def _sum_to(shape: Shape) -> Pullback:
    """Return the pullback of a broadcast, which keeps a shape and no array."""
    return lambda g: unbroadcast(g, shape)


def exp(a: Array) -> Result:
    """eᵃ, with d(eᵃ) = eᵃ da."""
    value = np.exp(a)
    return value, (lambda g: g * value,)


def log(a: Array) -> Result:
    """ln a, with d(ln a) = da / a."""
    return np.log(a), (lambda g: g / a,)


def sqrt(a: Array) -> Result:
    """√a, with d(√a) = da / 2√a."""
    value = np.sqrt(a)
    return value, (lambda g: g / (2 * value),)


def tanh(a: Array) -> Result:
    """tanh a, with d(tanh a) = (1 - tanh² a) da."""
    value = np.tanh(a)
    return value, (lambda g: g * (1 - value * value),)


def erf(a: Array) -> Result:
    """2/√π ∫₀ᵃ e^(-t²) dt, with d(erf a) = 2/√π e^(-a²) da."""
    return erf_values(a), (lambda g: g * (2 / math.sqrt(math.pi) * np.exp(-a * a)),)


def matmul(a: Array, b: Array) -> Result:
    """a @ b as in NumPy, for vectors, matrices and stacks of matrices."""
    left, right = a.shape, b.shape
    return np.matmul(a, b), (
        lambda g: _matmul_left(g, left, b),
        lambda g: _matmul_right(g, a, right),
    )


def _matmul_left(g: Array, shape: Shape, b: Array) -> Array:
    """g bᵀ: the gradient of a, of that shape, in a @ b."""
    g2 = _expand(g, len(shape), b.ndim)
    b2 = b[:, None] if b.ndim == 1 else b
    full = g2 @ b2.swapaxes(-1, -2)  # (..., n, k)
    return unbroadcast(full[..., 0, :] if len(shape) == 1 else full, shape)


def _matmul_right(g: Array, a: Array, shape: Shape) -> Array:
    """aᵀ g: the gradient of b, of that shape, in a @ b."""
    g2 = _expand(g, a.ndim, len(shape))
    a2 = a[None, :] if a.ndim == 1 else a
    full = a2.swapaxes(-1, -2) @ g2  # (..., k, m)
    return unbroadcast(full[..., 0] if len(shape) == 1 else full, shape)


def _expand(g: Array, left: int, right: int) -> Array:
    """Restore the axes of size one that matmul drops for vectors; `left`, `right`: both ndims."""
    g = g[..., None] if right == 1 else g
    return g[..., None, :] if left == 1 else g


# erf(x) = x P(x²)/Q(x²) on [-4, 4], a least-maximum fit: relative error 2.5e-8 before rounding.
# From 3.92 on erf is 1 in float32, which the quotient gives there to the last bit: at 4 it does
# not, and x (1 + erf(x/√2)) would not vanish for a large negative x.
_ERF_IS_ONE = np.float32(3.92)
_ERF_P = (
    1.128379139,
    1.935447367e-1,
    5.310167976e-2,
    3.883322928e-3,
    2.845643426e-4,
    1.986771531e-6,
)
_ERF_Q = (1.0, 5.048571127e-1, 1.153498447e-1, 1.520721065e-2, 1.185563942e-3, 3.741997918e-5)
_erf_exact = np.frompyfunc(math.erf, 1, 1)


def erf_values(x: Array) -> Array:
    """erf x: to 4e-7 relative in float32, to the last place in float64."""
    value = np.array(x)
    erf_in_place(value, np.empty((3, *x.shape), x.dtype))
    return value


def erf_in_place(x: Array, scratch: Array) -> None:
    """Write erf x over x; the scratch is three arrays of its shape."""
    if x.dtype != np.float32:
        x[...] = _erf_exact(x)
        return
    square, p, q = (scratch[i, ...] for i in range(3))
    np.clip(x, -_ERF_IS_ONE, _ERF_IS_ONE, out=x)
    np.multiply(x, x, out=square)
    _polynomial(_ERF_P, square, out=p)
    _polynomial(_ERF_Q, square, out=q)
    x *= p
    x /= q


def _polynomial(coefficients: tuple[float, ...], x: Array, *, out: Array) -> None:
    """Evaluate a polynomial in place, by Horner's rule."""
    out.fill(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        out *= x
        out += c
