"""(IA)³'s hooks."""

from collections.abc import Sequence

from tinygrad_peft.errors import hinted
from tinygrad_peft.nn import Affine, Module, Transformer
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
    matches,
)
from tinygrad_peft_ia3.combine_vectors import combine_vectors
from tinygrad_peft_ia3.config import IA3Config
from tinygrad_peft_ia3.layer import IA3Linear

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
    """Register (IA)³."""
    return [IA3Config]


@hookimpl(hookspecs.adapt_module, IA3Config)
def adapt_module(config: IA3Config, site: Site) -> Module | None:
    """Wrap a target, with the vector on its input or its output."""
    if not site.is_target or not isinstance(site.module, Affine):
        return None
    on_input = config.scales_input(site.path, _family(site.model))
    return IA3Linear(site.module, site.init, on_input=on_input, ones=config.init_ia3_weights)


@hookimpl(hookspecs.merge_module, IA3Linear)
def merge_module(module: IA3Linear) -> Module | None:
    """Return the plain layer with its rows or columns multiplied."""
    return module.merge()


@hookimpl(hookspecs.count_parameters, IA3Config)
def count_parameters(config: IA3Config, shape: ModelShape) -> ParameterCount:
    """Σ out over the targets, or in for feed-forward modules."""
    count = sum(
        t.in_features if config.scales_input(t.path, shape.config.model_type) else t.out_features
        for t in shape.targets
    )
    return ParameterCount(trainable=count, added=count)


@hookimpl(hookspecs.combine_adapters, IA3Config)
def combine_adapters(config: IA3Config, combination: Combination) -> Combined:
    """Return one (IA)³ whose change is the weighted sum of several."""
    return combine_vectors(combination, combination.configs(type(config)))


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Refuse feed-forward modules that are unknown, or not targets."""
    return [
        f"step {i}: feedforward_modules {objection}"
        for i, config in draft.steps(IA3Config)
        for objection in _objections(config, draft.targets[i], _family(draft.model))
    ]


def _objections(config: IA3Config, targets: frozenset[str], family: str) -> list[str]:
    given, usual = config.feedforward_modules, config.usual_feedforward
    if given is None:
        needed = f"is required: defaults exist for {', '.join(usual)}"
        return [] if family in usual else [needed]
    if isinstance(given, str):
        matched = any(matches(path, given) for path in targets)
        return [] if matched else [f"{given!r} matches none of the targets"]
    if not (config.target_modules is None or isinstance(config.target_modules, str)):
        return []  # the config has checked them
    # PEFT fills in the family's usual ones for any targets.
    asked = [
        name
        for name in given
        if name not in usual.get(family, ()) and not any(matches(path, [name]) for path in targets)
    ]
    ends = sorted({path.rpartition(".")[2] for path in targets})
    return [
        f"names {name!r}, which matches none of the targets{close}"
        for name, close in hinted(asked, ends)
    ]


def _family(model: Module) -> str:
    return model.config.model_type if isinstance(model, Transformer) else ""
