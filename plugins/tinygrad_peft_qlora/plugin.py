"""The answers to the hooks of 4-bit bases; LoRA's own plugin puts LoRA on top of them."""

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
    capture_seams,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.peft.targets import matches
from tinygrad_peft_qlora.config import QLoraConfig, QuantizeConfig
from tinygrad_peft_qlora.layer import QuantizedLinear
from tinygrad_peft_qlora.quantization import fits_in_float32, quantize

__all__ = ["adapt_module", "check_recipe", "count_parameters", "merge_module", "peft_methods"]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """The 4-bit base alone, and with LoRA."""
    return [QuantizeConfig, QLoraConfig]


@hookimpl(hookspecs.adapt_module, QuantizeConfig)
def adapt_module(config: QuantizeConfig, site: Site) -> Module | None:
    """A 4-bit layer in place of a target."""
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
        return copy.copy(base)  # the same codes: what this adapter was trained on
    if isinstance(base, Affine):  # an earlier step's, of which no target told
        raise PeftError(f"{site.path} is a {type(base).__name__} already: quantize first")
    return None


@hookimpl(hookspecs.merge_module, QuantizedLinear)
def merge_module(module: QuantizedLinear) -> Module:
    """The plain layer of floats that the 4-bit codes stand for."""
    return module.dequantized()


@hookimpl(hookspecs.count_parameters, QuantizeConfig)
def count_parameters(config: QuantizeConfig, shape: ModelShape) -> ParameterCount:
    """Nothing is trained, and nothing is added: a weight counts as one, whatever it takes."""
    del config, shape
    return ParameterCount(trainable=0, added=0)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Places that are not the base's plain weights any more, and weights that are no numbers."""
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
    """Why a place cannot be quantised in a step."""
    for early in range(step):
        if path in draft.targets[early]:
            yield f"{path} is already taken by step {early}: quantize first"
        elif _is_saved(path, draft.recipe[early]):
            yield f"{path} is trained by step {early}, by modules_to_save: leave it out here"
    if isinstance(module, QuantizedLinear):
        asked, has = (
            f"{kind.quant_type} in blocks of {kind.block_size}" + ", double" * kind.double_quant
            for kind in (config, module.weight)
        )
        if asked != has:
            yield f"{path} is at 4 bits already, as {has} and not as {asked}"
    if isinstance(module, Linear) and not fits_in_float32(module.weight.data):
        yield f"{path}.weight holds NaN, infinity or more than float32 holds: it has no 4-bit codes"


def _is_saved(path: str, config: PeftConfig) -> bool:
    """Whether `modules_to_save` names the place, or one that it is in."""
    parts = path.split(".")
    above = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return any(matches(place, config.modules_to_save) for place in above)
