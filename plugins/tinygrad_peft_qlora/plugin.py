"""Hooks of 4-bit bases; LoRA's own plugin adds LoRA on top."""

import copy
from collections.abc import Iterator, Sequence

from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Affine, Linear, Module
from tinygrad_peft.peft import (
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    WeightFormat,
    capture_seams,
    hookimpl,
    hookspecs,
    is_saved_whole,
)
from tinygrad_peft_qlora.config import QLoraConfig, QuantizeConfig
from tinygrad_peft_qlora.layer import QuantizedLinear
from tinygrad_peft_qlora.quantization import fits_in_float32, quantize

__all__ = [
    "adapt_module",
    "check_recipe",
    "count_parameters",
    "merge_module",
    "peft_methods",
    "weight_formats",
]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Register the 4-bit base alone, and with LoRA."""
    return [QuantizeConfig, QLoraConfig]


@hookimpl(hookspecs.adapt_module, QuantizeConfig)
def adapt_module(config: QuantizeConfig, site: Site) -> Module | None:
    """Quantise a target."""
    if not site.is_target:
        return None
    base = site.module
    if isinstance(base, Linear):
        packed = quantize(
            base.weight.data,
            quant_type=config.quant_type,
            block_size=config.block_size,
            double_quant=config.double_quant,
        )
        return QuantizedLinear(packed, base.bias)
    if isinstance(base, QuantizedLinear):
        return copy.copy(base)  # the same codes that this adapter was trained on
    if isinstance(base, Affine):  # from an earlier step without targets
        raise PeftError(
            f"{site.path}: expected a Linear, got {type(base).__name__}: quantize first"
        )
    return None


@hookimpl(hookspecs.merge_module, QuantizedLinear)
def merge_module(module: QuantizedLinear) -> Module:
    """Dequantise the layer."""
    return module.dequantized()


@hookimpl(hookspecs.count_parameters, QuantizeConfig)
def count_parameters(config: QuantizeConfig, shape: ModelShape) -> ParameterCount:
    """Nothing is trained or added: a weight counts as one at any precision."""
    del config, shape
    return ParameterCount(trainable=0, added=0)


@hookimpl(hookspecs.weight_formats)
def weight_formats() -> Sequence[WeightFormat]:
    """Declare NF4 in blocks of 64, with 8-bit scales in blocks of 256."""
    return [WeightFormat("nf4", 4 + 8 / 64 + 32 / (64 * 256))]


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Refuse layers that an earlier step changed, and weights that are not finite."""
    modules = {seam.path: seam.module for seam in capture_seams(draft.model)}
    return [
        f"step {step}: {problem}"
        for step, config in draft.steps(QuantizeConfig)
        for path in sorted(draft.targets[step])
        for problem in _problems(path, modules[path], draft, step, config)
    ]


def _problems(
    path: str, module: Module, draft: Draft, step: int, config: QuantizeConfig
) -> Iterator[str]:
    """Yield the reasons why a step cannot quantise a module."""
    for early in range(step):
        if path in draft.targets[early]:
            yield f"{path}: step {early} already adapts it: quantize first"
        elif is_saved_whole(draft.recipe[early], path):
            yield f"{path}: step {early} trains it by modules_to_save: leave it out here"
    if isinstance(module, QuantizedLinear):
        asked, has = (
            f"{kind.quant_type} in blocks of {kind.block_size}" + ", double" * kind.double_quant
            for kind in (config, module.weight)
        )
        if asked != has:
            yield f"{path}: expected {asked}, got {has} already"
    if isinstance(module, Linear) and not fits_in_float32(module.weight.data):
        yield f"{path}.weight: expected finite float32 values, to quantise them"
