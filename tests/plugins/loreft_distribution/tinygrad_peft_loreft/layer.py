"""LoReFT (Wu et al. 2024, arXiv 2404.03592, section 3.2, equation 2).

    Φ(h) = h + Rᵀ (f(W h + b) - R h)

    R (r, d)  rotate_layer      its rows are orthonormal
    W (r, d)  learned_source    b (r,)      f the identity in the paper

edits the state h (d,) that a block gives for a token: its coordinates along R's rows become
f(W h + b), and the rest of it stays. The first p and the last s tokens of each prompt are edited
(section 4.1), and the generated ones are not.

The rows of R stay orthonormal because R is a function of the free matrix V (r, d) that is trained:

    Vᵀ = Rᵀ U, U (r, r) upper triangular with a positive diagonal (QR)

So it holds after any optimiser's step, in any loop, and after loading; restoring R after each step
would hold only where the loop does it. With S(M) = tril(M) + tril(M, -1)ᵀ, the gradient is exactly

    dV = U⁻¹ (dR - S(dR Rᵀ) R)

With g the gradient of Φ(h), e = R g and u = f(W h + b) - R h, and a = f'(W h + b) ⊙ e:

    dW = Σ a hᵀ,  db = Σ a,  dR = Σ u gᵀ - e hᵀ,  dh = g + Wᵀ a - Rᵀ e
"""

from collections.abc import Callable, Mapping

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import BlockLike, Context, Dropout, Init, Linear, Module, Parameter, Roles
from tinygrad_peft.nn import functional as F
from tinygrad_peft.ops import Result
from tinygrad_peft.tensor import Tensor, apply
from tinygrad_peft_loreft.config import LoreftConfig

__all__ = ["Intervention", "LoreftBlock", "edited_tokens", "orthonormal_rows", "put"]

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": Tensor.tanh,
}


class Intervention(Module):
    """dropout(h + Rᵀ (f(W h + b) - R h)): (..., d) -> (..., d)."""

    rotate_layer: Parameter  # V (r, d)
    learned_source: Linear

    def __init__(self, config: LoreftConfig, width: int, init: Init) -> None:
        rank = config.low_rank_dimension
        self.rotate_layer = Parameter(init.normal(rank, width, std=1 / np.sqrt(width)))
        self.learned_source = Linear(width, rank, init=init)
        self.activation = _ACTIVATIONS[config.act_fn]
        self.dropout = Dropout(config.dropout)
        self.dropout.rng = init.rng  # the place's own: no two places drop the same elements

    def start_as_identity(self) -> None:
        """W = R, and b = 0 already: Φ(h) = h, bit for bit."""
        self.learned_source.weight.data = self.rotation.data.copy()

    @property
    def rotation(self) -> Tensor:
        """R (r, d).

        Raises PeftError where the rows of V are linearly dependent, as in a damaged file.
        """
        return apply(orthonormal_rows, self.rotate_layer)

    def __call__(self, h: Tensor) -> Tensor:
        rotation = self.rotation
        update = self.activation(self.learned_source(h)) - F.linear(h, rotation)  # (..., r)
        return self.dropout(h + F.linear(update, rotation.transpose()))


class LoreftBlock(Module):
    """block(x), edited at the ends of each prompt: (B, T, d) -> (B, T, d)."""

    base_layer: BlockLike
    interventions: list[Intervention]  # for both ends, or for the start and for the end

    def __init__(self, base: BlockLike, config: LoreftConfig, width: int, init: Init) -> None:
        self.base_layer = base
        self.first_n, self.last_n = config.first_n, config.last_n
        self.interventions = [
            Intervention(config, width, init) for _ in range(config.interventions)
        ]

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        y = self.base_layer(x, context)
        ends = edited_tokens(context.roles, self.first_n, self.last_n)
        places = ends if len(self.interventions) == 2 else (ends[0] | ends[1],)
        for chosen, intervention in zip(places, self.interventions, strict=True):
            if chosen.any():
                y = apply(put, y, intervention(y[chosen]), chosen=chosen)
        return y


def edited_tokens(roles: Roles, p: int, s: int) -> tuple[BoolArray, BoolArray]:
    """Choose the first p and the last s tokens of each row's prompt: (B, T) each, disjoint.

    A prompt of n < p + s tokens is halved: p is at most ⌊n/2⌋ there, and s at most ⌈n/2⌉ (section
    4.1). A token with i tokens before it and j after it is in the first half where i < j, and its
    prompt is short where i + j + 1 < p + s.
    """
    first, last = np.zeros(roles.shape, bool), np.zeros(roles.shape, bool)
    for i in range(p):
        token = roles.first(i + 1) & ~roles.first(i)
        first |= token & ~roles.last(min(i + 1, p + s - i - 1))
    for j in range(s):
        token = roles.last(j + 1) & ~roles.last(j)
        last |= token & ~roles.first(min(j, p + s - j - 1))
    return first, last


def orthonormal_rows(v: Array) -> Result:
    """Orthonormalise the rows of V (r, d), r at most d, in their order: R (r, d).

    Raises PeftError where they are linearly dependent.
    """
    q, u = np.linalg.qr(v.T)
    scale = np.diagonal(u)  # (r,)
    if abs(scale).min() <= v.shape[1] * np.finfo(v.dtype).eps * abs(scale).max():
        raise PeftError(f"rotate_layer {v.shape}: expected linearly independent rows")
    signs = np.sign(scale)
    r, u = np.ascontiguousarray((q * signs).T), signs[:, None] * u

    def pullback(g: Array) -> Array:
        m = g @ r.T
        within: Array = (np.tril(m) + np.tril(m, -1).T) @ r
        return np.asarray(np.linalg.solve(u, g - within))

    return r, (pullback,)


def put(x: Array, values: Array, *, chosen: BoolArray) -> Result:
    """Replace x (B, T, d) where `chosen` (B, T) holds, by values (n, d) in the order of rows."""
    y = x.copy()
    y[chosen] = values
    return y, (lambda g: np.where(chosen[..., None], 0, g), lambda g: g[chosen])
