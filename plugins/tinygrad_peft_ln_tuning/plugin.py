"""LN tuning (Zhao et al. 2023, arXiv 2312.11420): train only the norms.

    layer norm  y = γ ⊙ (x - mean x) / √(var x + ε) + β
    RMS norm    y = γ ⊙ x / √(mean x² + ε)

γ (d,) and β (d,) are trained copies of the base's. With g the gradient of y and n the normalised x,
dγ = Σ g n and dβ = Σ g over all tokens. Everything else is frozen.

A trained norm is as plain as the base's: it costs nothing at inference, and merging leaves it in
place.
"""

from collections.abc import Sequence

from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import LayerNorm, Module, RMSNorm
from tinygrad_peft.peft import (
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    capture_seams,
    hookimpl,
    hookspecs,
    trained_copy,
)
from tinygrad_peft_ln_tuning.config import LNTuningConfig

__all__ = ["adapt_module", "check_recipe", "count_parameters", "peft_methods"]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Register LN tuning."""
    return [LNTuningConfig]


@hookimpl(hookspecs.adapt_module, LNTuningConfig)
def adapt_module(config: LNTuningConfig, site: Site) -> Module | None:
    """Replace a target with a trained copy of itself."""
    del config
    if not site.is_target:
        return None
    module = site.module
    if not isinstance(module, LayerNorm | RMSNorm):
        kind = type(module).__name__
        raise PeftError(f"{site.path}: expected a norm, got {kind} from an earlier step")
    if any(p.requires_grad for p in module.parameters()):
        raise PeftError(f"{site.path}: an earlier step already trains this norm")
    return trained_copy(module, fresh=not site.loading)


@hookimpl(hookspecs.count_parameters, LNTuningConfig)
def count_parameters(config: LNTuningConfig, shape: ModelShape) -> ParameterCount:
    """Σ d over the targets, or 2 d for norms with a bias; the base's own are kept too."""
    del config
    count = sum(norm.size * (2 if norm.has_bias else 1) for norm in shape.norms)
    return ParameterCount(trainable=count, added=count)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Refuse targets other than norms."""
    steps = [i for i, _ in draft.steps(LNTuningConfig)]
    if not steps:
        return []
    modules = {seam.path: seam.module for seam in capture_seams(draft.model)}
    return [
        f"step {i}: {path}: ln_tuning expected a norm, got {type(modules[path]).__name__}"
        for i in steps
        for path in sorted(draft.targets[i])
        if not isinstance(modules[path], LayerNorm | RMSNorm)
    ]
