"""A matrix that loses rank in training: h ← h + B A x, A (r, in) random and B (out, r) zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from tinygrad_peft import Module, Parameter, Tensor, peft
from tinygrad_peft.nn import Affine, Init, Linear
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import hookimpl, hookspecs
from tinygrad_peft.train import StepEnded
from tinygrad_peft.train import hookspecs as train_hookspecs


@dataclass(frozen=True, kw_only=True)
class ShrinkingConfig(peft.TargetedConfig):
    """`ranks` are those that differ from `r`, by path: training writes them."""

    peft_type: ClassVar[str] = "SHRINKING"
    adapts: ClassVar[tuple[type, ...]] = (Linear,)
    r: int = 8
    ranks: Mapping[str, int] = field(default_factory=dict)

    def rank(self, path: str) -> int:
        return self.ranks.get(path, self.r)

    def as_trained(self, modules: Mapping[str, Module]) -> "ShrinkingConfig":
        ranks = {path: m.rank for path, m in modules.items() if isinstance(m, ShrinkingLinear)}
        return replace(self, ranks={path: rank for path, rank in ranks.items() if rank != self.r})


class ShrinkingLinear(Module):
    base_layer: Affine

    def __init__(self, base: Affine, rank: int, init: Init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.a = Parameter(init.normal(rank, base.in_features, std=0.1))
        self.b = Parameter(init.zeros(base.out_features, rank))

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + F.linear(F.linear(x, self.a), self.b)


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    return [ShrinkingConfig]


@hookimpl(hookspecs.adapt_module, ShrinkingConfig)
def adapt_module(config: ShrinkingConfig, site: peft.Site) -> Module | None:
    if site.is_target and isinstance(site.module, Linear):
        return ShrinkingLinear(site.module, config.rank(site.path), site.init)
    return None


@hookimpl(hookspecs.merge_module, ShrinkingLinear)
def merge_module(module: ShrinkingLinear) -> Module | None:
    if not isinstance(module.base_layer, Linear):
        return None
    base, update = module.base_layer, module.b.data @ module.a.data
    bias = None if base.bias is None else Parameter(base.bias.data.copy())
    return Linear.of(Parameter(base.weight.data + update), bias)


@hookimpl(hookspecs.count_parameters, ShrinkingConfig)
def count_parameters(config: ShrinkingConfig, shape: peft.ModelShape) -> peft.ParameterCount | None:
    count = sum(config.rank(t.path) * (t.in_features + t.out_features) for t in shape.targets)
    return peft.ParameterCount(trainable=count, added=count)


@hookimpl(train_hookspecs.step_ended)
def step_ended(event: StepEnded) -> None:
    for _, module in event.model.named_modules():
        if isinstance(module, ShrinkingLinear) and module.a.grad is not None and module.rank > 4:
            sizes = np.linalg.norm(module.a.grad, axis=1)  # (r,)
            kept = np.sort(np.argsort(sizes)[1:])
            event.optimizer.keep_rows(module.a, kept)
            event.optimizer.keep_rows(module.b, kept, axis=1)
