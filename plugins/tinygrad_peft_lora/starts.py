"""Where A and B start, beside Kaiming-uniform and zero.

    PiSSA       W₀ = U S Vᵀ    B₀ = U_r √(S_r/s)    A₀ = √(S_r/s) V_rᵀ
    OLoRA       W₀ = Q R       B₀ = Q_r             A₀ = R_r
    orthogonal                 B A = 0 of factors that are not zero

(Meng et al. 2024, arXiv 2404.02948; Büyükakyüz 2024, arXiv 2406.01775.)

PiSSA and OLoRA start B A at a part of the weight itself, and train the update from there:

    y = (W₀ - s B₀ A₀) x + s B A x

PEFT takes the part out of the base's weight. Here the base is never touched: B₀ and A₀ are kept
beside A and B, frozen, and the update is that of a plain LoRA of twice the rank,

    ΔW = s [B, -B₀] [A; A₀]

which is what is saved: it opens on the base as it is, here and in PEFT.
"""

import numpy as np

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Init

__all__ = ["leading_part", "orthogonal", "require_rank"]


def leading_part(weight: Array, rank: int, scaling: float, start: str) -> tuple[Array, Array]:
    """A₀ (r, in) and B₀ (out, r) of PiSSA or OLoRA, for W (out, in).

    PiSSA's singular vectors are exact, also where a number of iterations was asked for: that many
    would only come near to them.
    """
    if start == "olora":
        q, r = np.linalg.qr(weight)
        return r[:rank].copy(), q[:, :rank].copy()
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(s[:rank] / scaling)
    return root[:, None] * vt[:rank], u[:, :rank] * root


def require_rank(shape: Shape, rank: int, start: str) -> None:
    """Raise PeftError for a rank that a weight of that shape does not have."""
    most = min(shape)
    if rank > most:
        raise PeftError(f"{start} of rank {rank}: a weight of {shape} has {most} at most")


def orthogonal(inputs: int, outputs: int, rank: int, init: Init) -> tuple[Array, Array]:
    """A (r, in) and B (out, r) that are not zero, with B A = 0 up to rounding.

    Their r-vectors are drawn from two halves of one orthonormal basis.
    """
    q, _ = np.linalg.qr(init.normal(rank, rank, std=1))
    a = (init.normal(inputs, rank // 2, std=0.1) @ q[0::2]).T  # (r, in)
    b = init.normal(outputs, rank // 2, std=0.1) @ q[1::2]  # (out, r)
    return np.ascontiguousarray(a), b
