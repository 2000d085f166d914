"""BitFit: y = W x + b₀ + b, b (out,) starting at zero (Ben Zaken et al. 2022, arXiv 2106.10199)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft import Module, Parameter, Tensor, peft
from tinygrad_peft.nn import Affine, Init, Linear
from tinygrad_peft.peft import hookimpl, hookspecs

__all__ = ["BitFitConfig", "BitFitLinear"]


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(peft.TargetedConfig):
    peft_type: ClassVar[str] = "BITFIT"
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {  # no llama: it has no biases
        "gpt2": ("c_attn", "c_fc", "c_proj"),
        "bert": ("query", "key", "value", "dense"),
    }


class BitFitLinear(Module):
    base_layer: Affine

    def __init__(self, base: Affine, init: Init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.bitfit_b = Parameter(init.zeros(base.out_features))

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.bitfit_b


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    return [BitFitConfig]


@hookimpl(hookspecs.adapt_module, BitFitConfig)
def adapt_module(config: BitFitConfig, site: peft.Site) -> Module | None:
    if site.is_target and isinstance(site.module, Affine):
        return BitFitLinear(site.module, site.init)
    return None


@hookimpl(hookspecs.merge_module, BitFitLinear)
def merge_module(module: BitFitLinear) -> Module | None:
    if not isinstance(module.base_layer, Linear):
        return None
    shift, base = module.bitfit_b.data, module.base_layer
    bias = shift.copy() if base.bias is None else base.bias.data + shift
    return Linear.of(Parameter(base.weight.data.copy()), Parameter(bias))


@hookimpl(hookspecs.count_parameters, BitFitConfig)
def count_parameters(config: BitFitConfig, shape: peft.ModelShape) -> peft.ParameterCount:
    count = sum(target.out_features for target in shape.targets)
    return peft.ParameterCount(trainable=count, added=count)
