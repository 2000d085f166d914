"""Training the base's own biases beside a method's weights, for PEFT's setting `bias`.

"none"; "all", the biases of the whole model; any other value, the biases of the method's targets.
"""

from collections.abc import Mapping

from tinygrad_peft.nn import Module
from tinygrad_peft.peft.hook_types import Draft, ModelShape
from tinygrad_peft.peft.recipes.trained_copy import trained_copy
from tinygrad_peft.peft.sites import Site

__all__ = ["bias_elements", "bias_objections", "biased_module", "with_trained_bias"]


def with_trained_bias(module: Module) -> Module | None:
    """Copy a module with a trained bias of its own; None if it has no bias."""
    return trained_copy(module, ["bias"])


def biased_module(site: Site, bias: str) -> Module:
    """Return a site's module, with a trained bias of its own if `bias` names it."""
    is_named = bias == "all" or (bias != "none" and site.is_target)
    return (with_trained_bias(site.module) if is_named else None) or site.module


def bias_elements(bias: str, shape: ModelShape) -> int:
    """Count the trained elements of the base's biases."""
    if bias == "none":
        return 0
    if bias == "all":
        return shape.biases
    return sum(target.out_features for target in shape.targets if target.has_bias)


def bias_objections(draft: Draft, biases: Mapping[int, str]) -> list[str]:
    """List objections to steps with these `bias` settings, keyed by the steps' numbers.

    The module with the trained bias replaces the base's instead of wrapping it.
    """
    trained = [step for step, bias in biases.items() if bias != "none"]
    if not trained or len(draft.recipe) == 1:
        return []
    return [f"step {trained[0]}: bias other than 'none' needs a recipe of one step"]
