"""Activation functions with their derivatives, element by element.

    relu      max(x, 0)                 1 where x > 0, else 0
    gelu      x Φ(x)                    Φ(x) + x φ(x)
    gelu_tanh ½ x (1 + tanh u)          ½ (1 + tanh u) + ½ x (1 - tanh² u) u'
    silu      x σ(x)                    σ(x) (1 + x (1 - σ(x)))
    tanh      tanh x                    1 - tanh² x

Φ and φ are the normal distribution and its density, σ(x) = 1 / (1 + e⁻ˣ),
u = √(2/π) (x + 0.044715 x³), u' = √(2/π) (1 + 3 · 0.044715 x²).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tinygrad_peft.reference._basics import Array, unknown

__all__ = ["ACTIVATIONS", "Activation", "activation_named"]


@dataclass(frozen=True)
class Activation:
    """A function and its derivative."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


def activation_named(name: str) -> Activation:
    """Look up an activation by name. Raises ValueError with the nearest name."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def _normal(x: Array) -> Array:
    # Φ(x) = ½ (1 + erf(x / √2))
    erf: Array = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))
    return (0.5 * (1 + erf)).astype(x.dtype)


def _density(x: Array) -> Array:
    # φ(x) = e^(-x²/2) / √(2π)
    density: Array = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    return density


def _sigmoid(x: Array) -> Array:
    # σ(x) = ½ (1 + tanh(x / 2)), which overflows nowhere
    sigmoid: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return sigmoid


def _u(x: Array) -> Array:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def _gelu_tanh_slope(x: Array) -> Array:
    tanh = np.tanh(_u(x))
    u_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    slope: Array = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * u_slope
    return slope


ACTIVATIONS: Mapping[str, Activation] = {
    "relu": Activation(lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
    "gelu": Activation(lambda x: x * _normal(x), lambda x: _normal(x) + x * _density(x)),
    "gelu_tanh": Activation(lambda x: 0.5 * x * (1 + np.tanh(_u(x))), _gelu_tanh_slope),
    "silu": Activation(
        lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))
    ),
    "tanh": Activation(np.tanh, lambda x: 1 - np.tanh(x) ** 2),
}
