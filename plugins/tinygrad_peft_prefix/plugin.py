"""Prefix tuning's hooks."""

from collections.abc import Sequence

from tinygrad_peft.nn import Module, Prefix, Transformer
from tinygrad_peft.peft import (
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    hookimpl,
    hookspecs,
    virtual_objections,
)
from tinygrad_peft_prefix.config import PrefixTuningConfig
from tinygrad_peft_prefix.layer import ProjectedPrefix, TrainedPrefix, columns, key_width

__all__ = ["adapt_module", "check_recipe", "count_parameters", "peft_methods"]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Register prefix tuning."""
    return [PrefixTuningConfig]


@hookimpl(hookspecs.adapt_module, PrefixTuningConfig)
def adapt_module(config: PrefixTuningConfig, site: Site) -> Module | None:
    """Prepend a prefix to the transformer's own."""
    if not isinstance(site.model, Transformer):
        return None
    base = site.module
    if base is not site.model.get_child("prefix") or not isinstance(base, Prefix):
        return None
    model = site.model.config
    if config.prefix_projection:
        return ProjectedPrefix(base, config, model, site.init)
    return TrainedPrefix.drawn(base, config, model, site.init)


@hookimpl(hookspecs.count_parameters, PrefixTuningConfig)
def count_parameters(config: PrefixTuningConfig, shape: ModelShape) -> ParameterCount:
    """2 P L K D; or, with t = K D and the network's width h, P t + h (t + 1) + 2 L t (h + 1)."""
    tokens, all_columns = config.num_virtual_tokens, columns(shape.config)
    count = tokens * all_columns
    if config.prefix_projection:
        width = key_width(shape.config)
        hidden = config.encoder_hidden_size or width
        count = tokens * width + hidden * (width + 1) + all_columns * (hidden + 1)
    return ParameterCount(trainable=count, added=count)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Refuse a prefix for another model, or without room for a text."""
    return virtual_objections(draft, PrefixTuningConfig)
