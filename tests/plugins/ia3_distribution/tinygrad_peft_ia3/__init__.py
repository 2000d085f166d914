"""(IA)³: y = l ⊙ (W x + b), l (out,) starting at one (Liu et al. 2022, arXiv 2205.05638, eq. 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft import Module, Parameter, Tensor, peft
from tinygrad_peft.nn import Affine, Init, Linear
from tinygrad_peft.peft import hookimpl, hookspecs

__all__ = ["IA3Config", "IA3Linear"]


@dataclass(frozen=True, kw_only=True)
class IA3Config(peft.TargetedConfig):
    peft_type: ClassVar[str] = "IA3"
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("k_proj", "v_proj"),
        "bert": ("key", "value"),
    }


class IA3Linear(Module):
    base_layer: Affine

    def __init__(self, base: Affine, init: Init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.ia3_l = Parameter(init.ones(base.out_features))

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) * self.ia3_l


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    return [IA3Config]


@hookimpl(hookspecs.adapt_module)
def adapt_module(site: peft.Site, config: peft.PeftConfig) -> Module | None:
    if isinstance(config, IA3Config) and site.is_target and isinstance(site.module, Affine):
        return IA3Linear(site.module, site.init)
    return None


@hookimpl(hookspecs.merge_module)
def merge_module(module: Module) -> Module | None:
    if not isinstance(module, IA3Linear) or not isinstance(module.base_layer, Linear):
        return None
    scale, base = module.ia3_l.data, module.base_layer
    bias = None if base.bias is None else Parameter(scale * base.bias.data)
    return Linear.of(Parameter(scale[:, None] * base.weight.data), bias)


@hookimpl(hookspecs.count_parameters)
def count_parameters(config: peft.PeftConfig, shape: peft.ModelShape) -> peft.ParameterCount | None:
    if not isinstance(config, IA3Config):
        return None
    count = sum(target.out_features for target in shape.targets)
    return peft.ParameterCount(trainable=count, added=count)
