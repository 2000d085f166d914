"""Model families as tables: config.json, names of modules and tensors."""

from tinygrad_peft.models.families.family import Family, Tensors
from tinygrad_peft.models.families.paths import PathMap
from tinygrad_peft.models.families.registry import (
    FAMILIES,
    checkpoint_path,
    config_from_json,
    config_to_json,
    equal_names,
    family,
    is_transposed,
    module_path,
)

__all__ = [
    "FAMILIES",
    "Family",
    "PathMap",
    "Tensors",
    "checkpoint_path",
    "config_from_json",
    "config_to_json",
    "equal_names",
    "family",
    "is_transposed",
    "module_path",
]
