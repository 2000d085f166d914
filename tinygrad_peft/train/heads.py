"""The classification head, trained whole beside the methods."""

import dataclasses
from collections.abc import Sequence

from tinygrad_peft.models import checkpoint_path
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftConfig

__all__ = ["with_saved_head"]


def with_saved_head(recipe: Sequence[PeftConfig], model: Transformer) -> tuple[PeftConfig, ...]:
    """Add the model's classification head to the modules that the recipe trains whole.

    The recipe stays as it is if the model has no head, or if the recipe trains it already.
    """
    if model.classifier is None:
        return tuple(recipe)
    head = checkpoint_path(model.config, "classifier")
    if not recipe or any(head in config.modules_to_save for config in recipe):
        return tuple(recipe)
    first, *rest = recipe
    saved = (*first.modules_to_save, head)
    return dataclasses.replace(first, modules_to_save=saved), *rest
