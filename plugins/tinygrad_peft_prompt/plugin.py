"""Hooks of prompt tuning and P-tuning."""

from collections.abc import Sequence

from tinygrad_peft.errors import ConfigError, listed
from tinygrad_peft.nn import Init, Module, Prompt, Transformer
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
from tinygrad_peft_prompt.config import PromptEncoderConfig, PromptTuningConfig, SoftPromptConfig
from tinygrad_peft_prompt.initialisation import first_states
from tinygrad_peft_prompt.layer import PromptEncoder, SoftPrompt

__all__ = [
    "adapt_for_p_tuning",
    "adapt_for_prompt_tuning",
    "check_recipe",
    "count_for_p_tuning",
    "count_for_prompt_tuning",
    "peft_methods",
]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Register prompt tuning and P-tuning."""
    return [PromptTuningConfig, PromptEncoderConfig]


@hookimpl(hookspecs.adapt_module, PromptTuningConfig)
def adapt_for_prompt_tuning(config: PromptTuningConfig, site: Site) -> Module | None:
    """Prepend a trained prompt to the transformer's own."""
    place = _place(config, site)
    if place is None:
        return None
    base, model = place
    if site.loading:
        return _zeros(base, config, model, site.init)
    return SoftPrompt(base, first_states(config, model.embed_tokens, site.init))


@hookimpl(hookspecs.adapt_module, PromptEncoderConfig)
def adapt_for_p_tuning(config: PromptEncoderConfig, site: Site) -> Module | None:
    """Prepend a prompt that a network computes, or the stored prompt of an LSTM."""
    place = _place(config, site)
    if place is None:
        return None
    base, model = place
    if config.encoder_reparameterization_type == "MLP":
        return PromptEncoder(base, config, model.config.hidden_size, site.init)
    return _zeros(base, config, model, site.init)


@hookimpl(hookspecs.count_parameters, PromptTuningConfig)
def count_for_prompt_tuning(config: PromptTuningConfig, shape: ModelShape) -> ParameterCount:
    """N D."""
    _refuse_untrainable(config)
    count = config.num_virtual_tokens * shape.config.hidden_size
    return ParameterCount(trainable=count, added=count)


@hookimpl(hookspecs.count_parameters, PromptEncoderConfig)
def count_for_p_tuning(config: PromptEncoderConfig, shape: ModelShape) -> ParameterCount:
    """N D + (D + 1) h + (h + 1) h + (h + 1) D, with the network's width h."""
    _refuse_untrainable(config)
    size = shape.config.hidden_size
    hidden = config.encoder_hidden_size or size
    count = config.num_virtual_tokens * size
    count += (size + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * size
    return ParameterCount(trainable=count, added=count)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Refuse a prompt for another model, or without room for a text."""
    return virtual_objections(draft, PromptTuningConfig, PromptEncoderConfig)


def _place(config: SoftPromptConfig, site: Site) -> tuple[Prompt, Transformer] | None:
    """Return the transformer and its prompt, if the site is the prompt's seam."""
    base, model = site.module, site.model
    if not isinstance(model, Transformer) or base is not model.get_child("prompt"):
        return None
    if not isinstance(base, Prompt):
        return None
    if not site.loading:
        _refuse_untrainable(config)
    return base, model


def _zeros(base: Prompt, config: SoftPromptConfig, model: Transformer, init: Init) -> SoftPrompt:
    """Return a prompt of zeros, to be loaded or trained."""
    return SoftPrompt(base, init.zeros(config.num_virtual_tokens, model.config.hidden_size))


def _refuse_untrainable(config: SoftPromptConfig) -> None:
    """Raise ConfigError for settings that only a stored prompt may have."""
    problems = config.untrainable()
    if problems:
        raise ConfigError(f"{type(config).__name__} cannot be trained:\n{listed(problems)}")
