"""Example: y = W x + b₀ + U diag(d) Vᵀ x, with U Σ Vᵀ the truncated SVD of W.

U (out, r) and V (in, r) belong to the largest singular values of the base's weight, and stay
frozen; d (r,) starts at zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinygrad_peft import Module, Parameter, Tensor, no_grad, peft
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import failures
from tinygrad_peft.nn import Affine, Init, Linear, weight_of
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import hookimpl, hookspecs

__all__ = ["ExampleConfig", "ExampleLinear"]


@dataclass(frozen=True, kw_only=True)
class ExampleConfig(peft.TargetedConfig):
    """Settings: `r` is the number of singular values that are trained."""

    peft_type: ClassVar[str] = "EXAMPLE"
    adapts: ClassVar[tuple[type, ...]] = (Affine,)
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("q_proj", "v_proj"),
        "bert": ("query", "value"),
    }

    r: int = 4

    def problems(self) -> list[str]:
        """List a rank below 1."""
        wrong = {f"r={self.r} must be at least 1": self.r < 1}
        return [*super().problems(), *failures(wrong)]

    def rank(self, inputs: int, outputs: int) -> int:
        """Return r, or the rank of a full matrix of these sizes if that is less."""
        return min(self.r, inputs, outputs)


class ExampleLinear(Module):
    """base(x) + update(x): (..., in) -> (..., out)."""

    base_layer: Affine

    def __init__(self, base: Affine, left: Array, right: Array, init: Init) -> None:
        """Take U as `left` (out, r) and Vᵀ as `right` (r, in)."""
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.u = Parameter(left, requires_grad=False)
        self.v = Parameter(right, requires_grad=False)
        self.d = Parameter(init.zeros(len(right)))

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """U diag(d) Vᵀ x: (..., in) -> (..., out)."""
        # ---- The formula. Merging uses it as well, so keep it linear in x.
        low = F.linear(x, self.v) * self.d  # (..., r)
        return F.linear(low, self.u)

    def delta(self) -> Array:
        """ΔW (out, in), read off the update of the unit vectors."""
        with no_grad():
            unit = np.eye(self.in_features, dtype=self.d.dtype)
            change: Array = self.update(Tensor(unit)).data.T
        return change


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    """Provide the method."""
    return [ExampleConfig]


@hookimpl(hookspecs.adapt_module, ExampleConfig)
def adapt_module(config: ExampleConfig, site: peft.Site) -> Module | None:
    """Wrap each target, with the singular vectors of its weight."""
    if not site.is_target or not isinstance(site.module, Affine):
        return None
    base, init = site.module, site.init
    rank = config.rank(base.in_features, base.out_features)
    if site.loading or not site.has_weights:  # a folder has them, or only shapes are wanted
        left, right = init.zeros(base.out_features, rank), init.zeros(rank, base.in_features)
    else:
        left, right = start(weight_of(base), rank)
    return ExampleLinear(base, left, right, init)


def start(weight: Array, rank: int) -> tuple[Array, Array]:
    """Compute U (out, r) and Vᵀ (r, in) of a weight (out, in)."""
    # ---- The start: everything that the method takes from the base's weight.
    u, _, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    return u[:, :rank].astype(weight.dtype), vt[:rank].astype(weight.dtype)


@hookimpl(hookspecs.merge_module, ExampleLinear)
def merge_module(module: ExampleLinear) -> Module | None:
    """Fold W + ΔW into a plain layer."""
    base = module.base_layer
    if not isinstance(base, Linear):
        return None
    bias = None if base.bias is None else Parameter(base.bias.data.copy())
    return Linear.of(Parameter(base.weight.data + module.delta()), bias)


@hookimpl(hookspecs.count_parameters, ExampleConfig)
def count_parameters(
    config: ExampleConfig,
    shape: peft.ModelShape,
) -> peft.ParameterCount:
    """Count r per target as trained, and r (1 + in + out) as added."""
    sizes = [(t.in_features, t.out_features) for t in shape.targets]
    trained = sum(config.rank(*size) for size in sizes)
    return peft.ParameterCount(
        trainable=trained, added=trained + sum(config.rank(*size) * sum(size) for size in sizes)
    )
