"""LoRA's answers to the hooks."""

import copy
from collections.abc import Sequence

from tinygrad_peft.errors import TargetError
from tinygrad_peft.nn import Affine, Linear, Module, Parameter
from tinygrad_peft.peft import (
    Combination,
    Combined,
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    hookimpl,
    hookspecs,
)
from tinygrad_peft_lora.combining import combine_loras
from tinygrad_peft_lora.config import LoraConfig, pattern_matches
from tinygrad_peft_lora.layer import LoraLinear

__all__ = [
    "adapt_module",
    "check_recipe",
    "combine_adapters",
    "count_parameters",
    "merge_module",
    "peft_methods",
]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """LoRA."""
    return [LoraConfig]


@hookimpl(hookspecs.adapt_module)
def adapt_module(site: Site, config: PeftConfig) -> Module | None:
    """Wrap a target in a LoraLinear; train the biases that `bias` asks for."""
    if not isinstance(config, LoraConfig):
        return None
    if not site.is_target:
        return _with_trained_bias(site.module) if config.bias == "all" else None
    base = site.module
    if config.bias != "none":
        base = _with_trained_bias(base) or base
    return LoraLinear(base, config, site.path, site.init) if isinstance(base, Affine) else None


@hookimpl(hookspecs.merge_module)
def merge_module(module: Module) -> Module | None:
    """W₀ + s B A in place of a LoraLinear on a plain layer."""
    return module.merge() if isinstance(module, LoraLinear) else None


@hookimpl(hookspecs.count_parameters)
def count_parameters(config: PeftConfig, shape: ModelShape) -> ParameterCount | None:
    """Σ r (in + out) over the targets, and the biases that are trained."""
    if not isinstance(config, LoraConfig):
        return None
    if not shape.targets:
        raise TargetError(f"lora: the targets {config.target_modules!r} name no affine layer")
    added = sum(config.rank(t.path) * (t.in_features + t.out_features) for t in shape.targets)
    biases = {
        "none": 0,
        "all": shape.biases,
        "lora_only": sum(t.out_features for t in shape.targets if t.has_bias),
    }
    return ParameterCount(trainable=added + biases[config.bias], added=added)


@hookimpl(hookspecs.combine_adapters)
def combine_adapters(combination: Combination) -> Combined | None:
    """One LoRA whose update is the weighted sum of those of several."""
    configs = [s.config for s in combination.sources if isinstance(s.config, LoraConfig)]
    if len(configs) != len(combination.sources):
        return None
    return combine_loras(combination, configs)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Patterns that match no target, and biases that two steps would train."""
    steps = [(i, c) for i, c in enumerate(draft.recipe) if isinstance(c, LoraConfig)]
    idle = [
        f"step {i}: the pattern {key!r} matches none of the targets"
        for i, config in steps
        for key in dict.fromkeys((*config.rank_pattern, *config.alpha_pattern))
        if not any(pattern_matches(key, path) for path in draft.targets[i])
    ]
    biased = [i for i, config in steps if config.bias != "none"]
    if biased and len(draft.recipe) > 1:
        idle.append(f"step {biased[0]}: bias other than 'none' needs a recipe of one step")
    return idle


def _with_trained_bias(module: Module) -> Module | None:
    """The module with a bias of its own, which is trained; None if it has no bias."""
    bias = dict(module.own_parameters()).get("bias")
    if bias is None:
        return None
    trained = Parameter(bias.data.copy())
    if isinstance(module, Linear):
        return Linear.of(module.weight, trained)
    twin = copy.copy(module)
    setattr(twin, "bias", trained)  # noqa: B010 - any module with a field of that name
    return twin
