"""Example: y = W x + b₀ + B diag(s) A x. Training keeps only the largest s.

A (r, in) is random, B (out, r) zero, s (r,) one. After step t of T, the number of s that are not
zero is at most r - (r - kept) t / T. The loss gains λ Σ (A Aᵀ - I)², the mean over all targets.
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
from tinygrad_peft.train import StepEnded
from tinygrad_peft.train import hookspecs as train_hookspecs

__all__ = ["ExampleConfig", "ExampleLinear"]


@dataclass(frozen=True, kw_only=True)
class ExampleConfig(peft.TargetedConfig):
    """Settings: `r` is the first rank, `kept` the last, `penalty` λ, the weight of the term."""

    peft_type: ClassVar[str] = "EXAMPLE"
    adapts: ClassVar[tuple[type, ...]] = (Affine,)
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("q_proj", "v_proj"),
        "bert": ("query", "value"),
    }

    r: int = 4
    kept: int = 2
    penalty: float = 0.01

    def problems(self) -> list[str]:
        """List ranks that do not shrink, and a negative penalty."""
        wrong = {
            f"kept={self.kept} must be from 1 to r={self.r}": not 1 <= self.kept <= self.r,
            f"penalty={self.penalty} must not be negative": self.penalty < 0,
        }
        return [*super().problems(), *failures(wrong)]


class ExampleLinear(Module):
    """base(x) + update(x): (..., in) -> (..., out)."""

    base_layer: Affine

    def __init__(self, base: Affine, config: ExampleConfig, init: Init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.kept, self.weight_of_penalty = config.kept, config.penalty
        self.a = Parameter(init.normal(config.r, base.in_features, std=0.1))
        self.b = Parameter(init.zeros(base.out_features, config.r))
        self.s = Parameter(init.ones(config.r))

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """B diag(s) A x: (..., in) -> (..., out)."""
        # ---- The formula. Merging uses it as well, so keep it linear in x.
        low = F.linear(x, self.a) * self.s  # (..., r)
        return F.linear(low, self.b)

    def penalty(self) -> Tensor:
        """λ Σ (A Aᵀ - I)², a scalar."""
        # ---- The term that training adds to the loss.
        a = self.a
        apart = F.linear(a, a) - Tensor(np.eye(len(a.data), dtype=a.dtype))  # (r, r)
        return (apart * apart).sum() * self.weight_of_penalty

    def shrink(self, progress: float) -> None:
        """Set the smallest s to zero; `progress` goes from 0 to 1 over training."""
        # ---- The schedule.
        s = self.s.data
        count = int(np.ceil(len(s) - (len(s) - self.kept) * progress))
        s[np.argsort(-np.abs(s), kind="stable")[count:]] = 0

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
    """r (in + out + 1) per target."""
    count = sum(config.r * (t.in_features + t.out_features + 1) for t in shape.targets)
    return peft.ParameterCount(trainable=count, added=count)


@hookimpl(train_hookspecs.extra_loss)
def extra_loss(model: Module) -> Tensor | None:
    """Add the mean penalty of all targets to the loss."""
    terms = [layer.penalty() for layer in _layers(model)]
    return sum(terms[1:], terms[0]) * (1 / len(terms)) if terms else None


@hookimpl(train_hookspecs.step_ended)
def step_ended(event: StepEnded) -> None:
    """Shrink each target, as far as training has come."""
    for layer in _layers(event.model):
        layer.shrink(event.step / event.total_steps)


def _layers(model: Module) -> list[ExampleLinear]:
    modules = (module for _, module in model.named_modules())
    return [module for module in modules if isinstance(module, ExampleLinear)]
