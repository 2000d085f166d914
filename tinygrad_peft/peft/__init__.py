"""Recipes of methods, the models that they adapt, and adapters on disk. Public names only."""

from tinygrad_peft.host import Host, PluginInfo, hookimpl
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.accounting.memory import Memory, estimate_full_memory, estimate_memory
from tinygrad_peft.peft.accounting.parameters import count_model, count_recipe
from tinygrad_peft.peft.configs.base import PeftConfig, steps_of
from tinygrad_peft.peft.configs.file_format import PREFIX, FileFormat, Shapes
from tinygrad_peft.peft.configs.patterns import broken_expressions, full_match, matches, named_by
from tinygrad_peft.peft.configs.serialisation import (
    RESERVED_SETTINGS,
    config_from_dict,
    config_to_dict,
    unknown_settings,
)
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig, TargetedConfig, dropout_problems
from tinygrad_peft.peft.folder_layout import HUGGING_FACE, FolderLayout
from tinygrad_peft.peft.hook_types import (
    AffineShape,
    Applied,
    Combination,
    CombinationType,
    Combined,
    Draft,
    EmbeddingShape,
    ForeignFolder,
    ForeignName,
    ForeignRequest,
    ForeignStep,
    ModelShape,
    NormShape,
    ParameterCount,
    Source,
    WeightFormat,
)
from tinygrad_peft.peft.methods import methods_of, parse_method
from tinygrad_peft.peft.model import DEFAULT, PeftModel, get_peft_model
from tinygrad_peft.peft.recipes.apply import apply_recipe, checked_targets
from tinygrad_peft.peft.recipes.biases import (
    bias_elements,
    bias_objections,
    biased_module,
    with_trained_bias,
)
from tinygrad_peft.peft.recipes.record import Record, Reparameterized, Rewrite
from tinygrad_peft.peft.recipes.saved_modules import is_saved_whole
from tinygrad_peft.peft.recipes.trained_copy import trained_copy
from tinygrad_peft.peft.recipes.virtual_tokens import VirtualConfig, virtual_objections
from tinygrad_peft.peft.sites import Common, Seam, Site, capture_seams
from tinygrad_peft.peft.storage.base_model import Head
from tinygrad_peft.peft.storage.folder import AdapterFolder
from tinygrad_peft.peft.storage.inspection import inspect_path
from tinygrad_peft.peft.storage.layout import known_layouts
from tinygrad_peft.peft.storage.problems import raise_problems
from tinygrad_peft.peft.switching.names import BASE
from tinygrad_peft.peft.switching.weighted_sums import weighted_sum

__all__ = [
    "BASE",
    "DEFAULT",
    "HUGGING_FACE",
    "PREFIX",
    "RESERVED_SETTINGS",
    "AdapterFolder",
    "AffineShape",
    "Applied",
    "Combination",
    "CombinationType",
    "Combined",
    "Common",
    "Draft",
    "EmbeddingShape",
    "FileFormat",
    "FolderLayout",
    "ForeignFolder",
    "ForeignName",
    "ForeignRequest",
    "ForeignStep",
    "Head",
    "Host",
    "Memory",
    "ModelShape",
    "NamedTargetsConfig",
    "NormShape",
    "ParameterCount",
    "PeftConfig",
    "PeftModel",
    "PluginInfo",
    "Record",
    "Reparameterized",
    "Rewrite",
    "Seam",
    "Shapes",
    "Site",
    "Source",
    "TargetedConfig",
    "VirtualConfig",
    "WeightFormat",
    "apply_recipe",
    "bias_elements",
    "bias_objections",
    "biased_module",
    "broken_expressions",
    "capture_seams",
    "checked_targets",
    "config_from_dict",
    "config_to_dict",
    "count_model",
    "count_recipe",
    "dropout_problems",
    "estimate_full_memory",
    "estimate_memory",
    "full_match",
    "get_peft_model",
    "hookimpl",
    "hookspecs",
    "inspect_path",
    "is_saved_whole",
    "known_layouts",
    "matches",
    "methods_of",
    "named_by",
    "parse_method",
    "raise_problems",
    "steps_of",
    "trained_copy",
    "unknown_settings",
    "virtual_objections",
    "weighted_sum",
    "with_trained_bias",
]
