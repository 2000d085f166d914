"""The classification head, trained whole beside whatever methods there are."""

import dataclasses
from collections.abc import Sequence

from tinygrad_peft.models import checkpoint_path
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftConfig

__all__ = ["with_saved_head"]


def with_saved_head(recipe: Sequence[PeftConfig], model: Transformer) -> tuple[PeftConfig, ...]:
    """The recipe, with the model's classification head among the modules that it trains whole.

    A model without one, and a recipe that trains it already, leave the recipe as it is.
    """
    if model.classifier is None:
        return tuple(recipe)
    head = checkpoint_path(model.config, "classifier")
    if not recipe or any(head in config.modules_to_save for config in recipe):
        return tuple(recipe)
    first, *rest = recipe
    saved = (*first.modules_to_save, head)
    return dataclasses.replace(first, modules_to_save=saved), *rest
