"""The plugin host, recipes, and the model that a recipe was applied to."""

from tinygrad_peft.host import Host, PluginInfo, hookimpl
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.biases import bias_elements, bias_objections, with_trained_bias
from tinygrad_peft.peft.composition import apply_recipe
from tinygrad_peft.peft.config import (
    NamedTargetsConfig,
    PeftConfig,
    TargetedConfig,
)
from tinygrad_peft.peft.copies import trained_copy
from tinygrad_peft.peft.counting import count_model, count_recipe
from tinygrad_peft.peft.events import (
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
)
from tinygrad_peft.peft.layout import Layout
from tinygrad_peft.peft.memory import Memory, estimate_full_memory, estimate_memory
from tinygrad_peft.peft.methods import methods_of
from tinygrad_peft.peft.model import PeftModel, get_peft_model
from tinygrad_peft.peft.record import Record, Reparameterized, Rewrite
from tinygrad_peft.peft.settings import (
    config_from_dict,
    config_to_dict,
    parse_method,
    unknown_settings,
)
from tinygrad_peft.peft.sites import Common, Seam, Site, capture_seams
from tinygrad_peft.peft.targets import matches
from tinygrad_peft.peft.virtual import VirtualConfig, virtual_objections

__all__ = [
    "AffineShape",
    "Applied",
    "Combination",
    "CombinationType",
    "Combined",
    "Common",
    "Draft",
    "EmbeddingShape",
    "ForeignFolder",
    "ForeignName",
    "ForeignRequest",
    "ForeignStep",
    "Host",
    "Layout",
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
    "Site",
    "Source",
    "TargetedConfig",
    "VirtualConfig",
    "apply_recipe",
    "bias_elements",
    "bias_objections",
    "capture_seams",
    "config_from_dict",
    "config_to_dict",
    "count_model",
    "count_recipe",
    "estimate_full_memory",
    "estimate_memory",
    "get_peft_model",
    "hookimpl",
    "hookspecs",
    "matches",
    "methods_of",
    "parse_method",
    "trained_copy",
    "unknown_settings",
    "virtual_objections",
    "with_trained_bias",
]
