"""The base's own biases, where a method trains them beside its weights, as PEFT's `bias` asks for.

"none"; "all", those of the whole model; or those of the method's targets, by whatever name.
"""

from collections.abc import Mapping

from tinygrad_peft.nn import Module
from tinygrad_peft.peft.copies import trained_copy
from tinygrad_peft.peft.events import Draft, ModelShape

__all__ = ["bias_elements", "bias_objections", "with_trained_bias"]


def with_trained_bias(module: Module) -> Module | None:
    """The module with a bias of its own, which is trained; None if it has no bias."""
    return trained_copy(module, ["bias"])


def bias_elements(bias: str, shape: ModelShape) -> int:
    """How many elements of the base's biases are trained."""
    if bias == "none":
        return 0
    if bias == "all":
        return shape.biases
    return sum(target.out_features for target in shape.targets if target.has_bias)


def bias_objections(draft: Draft, biases: Mapping[int, str]) -> list[str]:
    """Return why steps with these `bias` settings, by their numbers, cannot be in the recipe.

    The module with the trained bias takes the place of the base's, and wraps nothing.
    """
    trained = [step for step, bias in biases.items() if bias != "none"]
    if not trained or len(draft.recipe) == 1:
        return []
    return [f"step {trained[0]}: bias other than 'none' needs a recipe of one step"]
