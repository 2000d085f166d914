"""A method that keeps every promise, in parts that those beside it replace."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Affine, Dropout, Init, Linear, Module, Parameter, TransformerConfig
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import (
    Draft,
    Host,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    TargetedConfig,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.testing import SMALL_MODELS, MethodConformance

GPT2, LLAMA, BERT = (
    {name: replace(shape, num_hidden_layers=1)} for name, shape in SMALL_MODELS.items()
)


@dataclass(frozen=True, kw_only=True)
class RankOneConfig(TargetedConfig):
    peft_type: ClassVar[str] = "RANK_ONE"
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("v_proj",),
        "bert": ("value",),
    }
    dropout: float = 0.0
    scale: float = 1.0


class RankOneLinear(Module):
    """base(x) + s b (a · dropout(x)), with b starting at zero."""

    base_layer: Affine

    def __init__(self, base: Affine, config: RankOneConfig, init: Init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scale = config.scale
        self.base_layer = base
        self.dropout = Dropout(config.dropout)
        self.a = Parameter(init.normal(1, base.in_features, std=0.5))
        self.b = Parameter(init.zeros(base.out_features, 1))

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.update(self.dropout(x))

    def update(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b) * self.scale

    def delta(self) -> Array:
        change: Array = self.scale * self.b.data @ self.a.data
        return change


class RankOne:
    """Its plugin; a wrong one has another layer, or overrides a part."""

    def __init__(self, layer: type[RankOneLinear], settings: type[RankOneConfig]) -> None:
        self.layer, self.settings = layer, settings

    @hookimpl(hookspecs.peft_methods)
    def peft_methods(self) -> Sequence[type[PeftConfig]]:
        return [self.settings]

    @hookimpl(hookspecs.check_recipe)
    def check_recipe(self, draft: Draft) -> Sequence[str]:
        return self.check(draft)

    @hookimpl(hookspecs.adapt_module, RankOneConfig)
    def adapt_module(self, config: RankOneConfig, site: Site) -> Module | None:
        if site.is_target and isinstance(site.module, Affine):
            return self.adapt(site, site.module, config)
        return None

    @hookimpl(hookspecs.merge_module, RankOneLinear)
    def merge_module(self, module: RankOneLinear) -> Module | None:
        if isinstance(module.base_layer, Linear):
            return self.merge(module, module.base_layer)
        return None

    @hookimpl(hookspecs.count_parameters, RankOneConfig)
    def count_parameters(self, config: RankOneConfig, shape: ModelShape) -> ParameterCount | None:
        count = self.count(shape)
        return ParameterCount(trainable=count, added=count)

    def check(self, draft: Draft) -> Sequence[str]:
        return []

    def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
        return self.layer(base, config, site.init)

    def merge(self, module: RankOneLinear, base: Linear) -> Module | None:
        bias = None if base.bias is None else Parameter(base.bias.data.copy())
        return Linear.of(Parameter(base.weight.data + module.delta()), bias)

    def count(self, shape: ModelShape) -> int:
        return sum(t.in_features + t.out_features for t in shape.targets)


class CannotMerge(RankOne):
    def merge(self, module: RankOneLinear, base: Linear) -> Module | None:
        return None


class Method(MethodConformance):
    config: ClassVar[RankOneConfig] = RankOneConfig()
    models: ClassVar[Mapping[str, TransformerConfig]] = BERT  # one family shows it, and is fast
    Plugin: ClassVar[type[RankOne]] = RankOne
    Layer: ClassVar[type[RankOneLinear]] = RankOneLinear
    fails: ClassVar[Mapping[str, str]] = {}
    also: ClassVar[tuple[str, ...]] = ()
    skips: ClassVar[Collection[tuple[str, str]]] = ()

    @classmethod
    def plugins(cls) -> Host:
        host = Host()
        host.register(cls.Plugin(cls.Layer, type(cls.config)), "rank_one")
        return host
