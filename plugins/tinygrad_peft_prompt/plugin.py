"""The answers of prompt tuning and P-tuning to the hooks."""

from collections.abc import Sequence

from tinygrad_peft.errors import ConfigError, listed
from tinygrad_peft.nn import Module, Prompt, Transformer
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
from tinygrad_peft_prompt.layer import PromptEncoder, SoftPrompt
from tinygrad_peft_prompt.start import first_states

__all__ = ["adapt_module", "check_recipe", "count_parameters", "peft_methods"]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Prompt tuning and P-tuning."""
    return [PromptTuningConfig, PromptEncoderConfig]


@hookimpl(hookspecs.adapt_module)
def adapt_module(site: Site, config: PeftConfig) -> Module | None:
    """A prompt in front of what stands in the transformer's place for one."""
    if not isinstance(config, SoftPromptConfig) or not isinstance(site.model, Transformer):
        return None
    base, size = site.module, site.model.config.hidden_size
    if base is not site.model.get_child("prompt") or not isinstance(base, Prompt):
        return None
    if not site.loading:
        _refuse_untrainable(config)
    if isinstance(config, PromptEncoderConfig) and config.encoder_reparameterization_type == "MLP":
        return PromptEncoder(base, config, size, site.init)
    if isinstance(config, PromptTuningConfig) and not site.loading:
        return SoftPrompt(base, first_states(config, site.model.embed_tokens, site.init))
    return SoftPrompt(base, site.init.zeros(config.num_virtual_tokens, size))


@hookimpl(hookspecs.count_parameters)
def count_parameters(config: PeftConfig, shape: ModelShape) -> ParameterCount | None:
    """N D; and, for P-tuning with a network of width h, (D + 1) h + (h + 1) h + (h + 1) D more."""
    if not isinstance(config, SoftPromptConfig):
        return None
    _refuse_untrainable(config)
    size = shape.config.hidden_size
    count = config.num_virtual_tokens * size
    if isinstance(config, PromptEncoderConfig):
        hidden = config.encoder_hidden_size or size
        count += (size + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * size
    return ParameterCount(trainable=count, added=count)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """A prompt of another model, or one that leaves no room for the text."""
    return virtual_objections(draft, PromptTuningConfig, PromptEncoderConfig)


def _refuse_untrainable(config: SoftPromptConfig) -> None:
    """Raise ConfigError for settings that only a stored prompt may have."""
    problems = config.untrainable()
    if problems:
        raise ConfigError(f"{config.peft_type.lower()} cannot start so:\n{listed(problems)}")
