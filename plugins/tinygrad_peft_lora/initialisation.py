"""Initialisation of A and B, other than Kaiming-uniform and zero.

    PiSSA       W₀ = U S Vᵀ    B₀ = U_r √(S_r/s)    A₀ = √(S_r/s) V_rᵀ
    OLoRA       W₀ = Q R       B₀ = Q_r             A₀ = R_r
    orthogonal                 B A = 0 of factors that are not zero

(Meng et al. 2024, arXiv 2404.02948; Büyükakyüz 2024, arXiv 2406.01775.)

PiSSA and OLoRA start B A at a part of the weight itself, and train the update from there:

    y = (W₀ - s B₀ A₀) x + s B A x

PEFT subtracts the part from the base's weight. Here the base stays untouched: B₀ and A₀ are kept
beside A and B, frozen, and the update equals a plain LoRA of twice the rank,

    ΔW = s [B, -B₀] [A; A₀]

This LoRA is saved, and loads on the original base, here and in PEFT.
"""

import numpy as np

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Init

__all__ = ["leading_part", "orthogonal", "require_rank"]


def leading_part(weight: Array, rank: int, scaling: float, start: str) -> tuple[Array, Array]:
    """Return A₀ (r, in) and B₀ (out, r) of PiSSA or OLoRA, for W (out, in).

    PiSSA's singular vectors are exact, even where `pissa_niter_N` asks for an approximation.
    """
    if start == "olora":
        q, r = np.linalg.qr(weight)
        return r[:rank].copy(), q[:, :rank].copy()
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(s[:rank] / scaling)
    return root[:, None] * vt[:rank], u[:, :rank] * root


def require_rank(shape: Shape, rank: int, start: str) -> None:
    """Raise PeftError for a rank above the largest that a weight of this shape has."""
    most = min(shape)
    if rank > most:
        raise PeftError(
            f"{start}: expected a rank of at most {most} for a weight {shape}, got {rank}"
        )


def orthogonal(inputs: int, outputs: int, rank: int, init: Init) -> tuple[Array, Array]:
    """Draw nonzero A (r, in) and B (out, r) with B A = 0 up to rounding.

    Their r-vectors lie in the two halves of one orthonormal basis.
    """
    q, _ = np.linalg.qr(init.normal(rank, rank, std=1))
    a = (init.normal(inputs, rank // 2, std=0.1) @ q[0::2]).T  # (r, in)
    b = init.normal(outputs, rank // 2, std=0.1) @ q[1::2]  # (out, r)
    return np.ascontiguousarray(a), b
