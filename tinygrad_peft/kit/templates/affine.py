"""Example: y = W x + b₀ + s B A x, with A (r, in) random and B (out, r) zero.

r is the rank, s the scale, and "base" stands for W x + b₀, which may be another method's module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinygrad_peft import Module, Parameter, Tensor, no_grad, peft
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import failures
from tinygrad_peft.nn import Affine, Init, Linear
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import hookimpl, hookspecs

__all__ = ["ExampleConfig", "ExampleLinear"]


@dataclass(frozen=True, kw_only=True)
class ExampleConfig(peft.TargetedConfig):
    """Settings: `r` is the rank, `scale` a factor of the update."""

    peft_type: ClassVar[str] = "EXAMPLE"
    adapts: ClassVar[tuple[type, ...]] = (Affine,)
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("q_proj", "v_proj"),
        "bert": ("query", "value"),
    }

    r: int = 4
    scale: float = 1.0

    def problems(self) -> list[str]:
        """List a rank below 1."""
        wrong = {f"r={self.r} must be at least 1": self.r < 1}
        return [*super().problems(), *failures(wrong)]


class ExampleLinear(Module):
    """base(x) + update(x): (..., in) -> (..., out)."""

    base_layer: Affine

    def __init__(self, base: Affine, config: ExampleConfig, init: Init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.scale = config.scale
        self.a = Parameter(init.normal(config.r, base.in_features, std=0.1))
        self.b = Parameter(init.zeros(base.out_features, config.r))

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """s B A x: (..., in) -> (..., out)."""
        # ---- The formula. Merging uses it as well, so keep it linear in x.
        low = F.linear(x, self.a)  # (..., r)
        return F.linear(low, self.b) * self.scale

    def delta(self) -> Array:
        """ΔW (out, in), read off the update of the unit vectors."""
        with no_grad():
            unit = np.eye(self.in_features, dtype=self.a.dtype)
            change: Array = self.update(Tensor(unit)).data.T
        return change


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    """Provide the method."""
    return [ExampleConfig]


@hookimpl(hookspecs.adapt_module, ExampleConfig)
def adapt_module(config: ExampleConfig, site: peft.Site) -> Module | None:
    """Wrap each target."""
    if site.is_target and isinstance(site.module, Affine):
        return ExampleLinear(site.module, config, site.init)
    return None


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
    """r (in + out) per target."""
    count = sum(config.r * (t.in_features + t.out_features) for t in shape.targets)
    return peft.ParameterCount(trainable=count, added=count)
