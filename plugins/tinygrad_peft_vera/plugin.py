"""VeRA's hooks."""

from collections.abc import Sequence

from tinygrad_peft.nn import Affine, Module
from tinygrad_peft.peft import (
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    bias_elements,
    bias_objections,
    biased_module,
    hookimpl,
    hookspecs,
)
from tinygrad_peft_vera.config import VeraConfig
from tinygrad_peft_vera.layer import VeraLinear
from tinygrad_peft_vera.projection import shared

__all__ = ["adapt_module", "check_recipe", "count_parameters", "merge_module", "peft_methods"]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Register VeRA."""
    return [VeraConfig]


@hookimpl(hookspecs.adapt_module, VeraConfig)
def adapt_module(config: VeraConfig, site: Site) -> Module | None:
    """Wrap a target; train the biases that `bias` names."""
    base = biased_module(site, config.bias)
    if not site.is_target:
        return None if base is site.module else base
    if not isinstance(base, Affine):
        return None
    return VeraLinear(base, config, shared(config, site), site.init)


@hookimpl(hookspecs.merge_module, VeraLinear)
def merge_module(module: VeraLinear) -> Module | None:
    """Return the plain layer W₀ + Λ_b B Λ_d A."""
    return module.merge()


@hookimpl(hookspecs.count_parameters, VeraConfig)
def count_parameters(config: VeraConfig, shape: ModelShape) -> ParameterCount:
    """Σ (out + r) over the targets; saved matrices are added once."""
    vectors = sum(target.out_features + config.r for target in shape.targets)
    widest = max(t.in_features for t in shape.targets) + max(t.out_features for t in shape.targets)
    projection = config.r * widest if config.save_projection else 0
    trainable = vectors + bias_elements(config.bias, shape)
    return ParameterCount(trainable=trainable, added=vectors + projection)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Refuse biases that two steps would train."""
    return bias_objections(draft, {i: config.bias for i, config in draft.steps(VeraConfig)})
