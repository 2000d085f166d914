"""The classification head, trained whole beside the methods."""

import dataclasses
from collections.abc import Sequence

from tinygrad_peft.models import checkpoint_path
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftConfig, is_saved_whole

__all__ = ["cut_at", "with_saved_head"]


def cut_at(model: Transformer, max_length: int | None) -> None:
    """Note the length at which the classifier's texts are cut, for sentence-transformers."""
    if model.config.is_sentence_classifier and max_length is not None:
        model.config = dataclasses.replace(model.config, max_seq_length=max_length)


def with_saved_head(recipe: Sequence[PeftConfig], model: Transformer) -> tuple[PeftConfig, ...]:
    """Add the model's classification head to the modules that the recipe trains whole.

    A new pooler, which no checkpoint has, is trained with the classifier. The recipe stays as it is
    if the model has no head, or if the recipe trains it already.
    """
    if model.classifier is None or not recipe:
        return tuple(recipe)
    head = dict.fromkeys(("classifier", *model.new_modules))
    paths = [checkpoint_path(model.config, part) for part in head]
    missing = [path for path in paths if not any(is_saved_whole(config, path) for config in recipe)]
    first, *rest = recipe
    saved = (*first.modules_to_save, *missing)
    return dataclasses.replace(first, modules_to_save=saved), *rest
