"""Example: Ŵ = diag(c) Q, with 8-bit codes Q (out, in) and scales c (out,).

c is max |W| / 127 of each row. The layer is replaced, and trains nothing. Other methods may stand
around it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinygrad_peft import Module, Parameter, Tensor, peft
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Affine, Linear
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import hookimpl, hookspecs

__all__ = ["ExampleConfig", "ExampleLinear"]


@dataclass(frozen=True, kw_only=True)
class ExampleConfig(peft.TargetedConfig):
    """Settings: the targets alone."""

    peft_type: ClassVar[str] = "EXAMPLE"
    adapts: ClassVar[tuple[type, ...]] = (Affine,)

    target_modules: str | Sequence[str] | None = "all-linear"


class ExampleLinear(Module):
    """Ŵ x + b, with Ŵ in 8 bits: (..., in) -> (..., out)."""

    def __init__(self, base: Linear) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.codes, self.scale = to_int8(base.weight.data)
        self.dtype = base.weight.dtype
        self.bias = base.bias
        self.packed_elements = self.codes.size

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, Tensor(self.dense_weight()), self.bias)

    def dense_weight(self) -> Array:
        """Ŵ (out, in), a new array."""
        # ---- The formula, one way: codes to weights.
        weight: Array = (self.codes * self.scale).astype(self.dtype)
        return weight


def to_int8(weight: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Compute Q (out, in) and c (out, 1) of a weight (out, in)."""
    # ---- The formula, the other way: weights to codes.
    scale = np.abs(weight).max(axis=1, keepdims=True, initial=0.0) / 127
    codes = np.rint(weight / np.where(scale > 0, scale, 1)).astype(np.int8)
    return codes, scale


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    """Provide the method."""
    return [ExampleConfig]


@hookimpl(hookspecs.adapt_module, ExampleConfig)
def adapt_module(config: ExampleConfig, site: peft.Site) -> Module | None:
    """Replace each target. A further adapter on the same base shares its codes."""
    del config  # it has no settings of its own
    if not site.is_target:
        return None
    if isinstance(site.module, Linear):
        return ExampleLinear(site.module)
    if isinstance(site.module, ExampleLinear):
        return copy.copy(site.module)
    if isinstance(site.module, Affine):
        kind = type(site.module).__name__
        raise PeftError(f"{site.path}: expected a plain layer to quantise, got {kind}")
    return None


@hookimpl(hookspecs.merge_module, ExampleLinear)
def merge_module(module: ExampleLinear) -> Module:
    """Return the plain layer of Ŵ."""
    bias = None if module.bias is None else Parameter(module.bias.data.copy())
    return Linear.of(Parameter(module.dense_weight()), bias)


@hookimpl(hookspecs.count_parameters, ExampleConfig)
def count_parameters(
    config: ExampleConfig,
    shape: peft.ModelShape,
) -> peft.ParameterCount:
    """Count nothing: a weight is one element, whatever its bits."""
    del config, shape
    return peft.ParameterCount(trainable=0, added=0)


@hookimpl(hookspecs.weight_formats)
def weight_formats() -> Sequence[peft.WeightFormat]:
    """Name the format for estimates of memory: 8 bits per weight."""
    return [peft.WeightFormat("example", 8.0)]


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: peft.Draft) -> Sequence[str]:
    """Object to places that an earlier step has adapted: quantise first."""
    return [
        f"step {step}: {path} is adapted by step {early}: quantise first"
        for step, _ in draft.steps(ExampleConfig)
        for early in range(step)
        for path in sorted({*draft.targets[step]} & {*draft.targets[early]})
    ]
