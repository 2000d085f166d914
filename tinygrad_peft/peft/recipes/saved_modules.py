"""Modules that `modules_to_save` trains whole."""

from itertools import accumulate

from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.patterns import matches

__all__ = ["is_saved_whole"]


def is_saved_whole(config: PeftConfig, path: str) -> bool:
    """Tell whether `modules_to_save` names the module at a path, or one that contains it."""
    above = accumulate(path.split("."), "{}.{}".format)  # model, model.layers, ...
    return any(matches(each, config.modules_to_save) for each in above)
