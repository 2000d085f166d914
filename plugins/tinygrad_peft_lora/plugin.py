"""LoRA's answers to the hooks."""

from collections.abc import Sequence

from tinygrad_peft.nn import Affine, Module, TokenEmbedding
from tinygrad_peft.peft import (
    Combination,
    Combined,
    Draft,
    ForeignFolder,
    ForeignRequest,
    ForeignStep,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    hookimpl,
    hookspecs,
    with_trained_bias,
)
from tinygrad_peft_lora.checks import objections
from tinygrad_peft_lora.combining import combine_loras
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.counting import count_lora
from tinygrad_peft_lora.dora import DoraLinear
from tinygrad_peft_lora.embedding import DoraEmbedding, LoraEmbedding
from tinygrad_peft_lora.layer import LoraLinear, Mergeable
from tinygrad_peft_lora.mlx import MLX, read_mlx, write_mlx
from tinygrad_peft_lora.taken_out import TakenOutLora
from tinygrad_peft_lora.tokens import adapt_tokens

__all__ = [
    "adapt_module",
    "check_recipe",
    "combine_adapters",
    "count_parameters",
    "merge_module",
    "peft_methods",
    "read_foreign",
    "write_foreign",
]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """LoRA."""
    return [LoraConfig]


@hookimpl(hookspecs.adapt_module, LoraConfig)
def adapt_module(config: LoraConfig, site: Site) -> Module | None:
    """Wrap a target, or a place of trained tokens; train the biases that `bias` asks for."""
    if not site.is_target:
        if config.token_ids() and (tokens := adapt_tokens(site, config)):
            return tokens
        return with_trained_bias(site.module) if config.bias == "all" else None
    base = site.module
    if config.bias != "none":
        base = with_trained_bias(base) or base
    return _adapted(base, site, config)


def _adapted(base: Module, site: Site, config: LoraConfig) -> Module | None:
    """The kind of LoRA that the settings ask for on a layer; None where there is none."""
    if isinstance(base, Affine):
        kind = LoraLinear
        if config.use_dora or config.is_taken_out:
            kind = DoraLinear if config.use_dora else TakenOutLora
        return kind(base, config, site.path, site.init)
    if isinstance(base, TokenEmbedding):
        on_ids = DoraEmbedding if config.use_dora else LoraEmbedding
        return on_ids(base, config, site.path, site.init)
    return None


@hookimpl(hookspecs.merge_module, Mergeable)
def merge_module(module: Mergeable) -> Module | None:
    """W₀ + s B A in place of a LoraLinear on a plain layer, and the like."""
    return module.merge()


@hookimpl(hookspecs.count_parameters, LoraConfig)
def count_parameters(config: LoraConfig, shape: ModelShape) -> ParameterCount:
    """Σ r (in + out) over the targets, and what the options add to it."""
    return count_lora(config, shape)


@hookimpl(hookspecs.combine_adapters, LoraConfig)
def combine_adapters(config: LoraConfig, combination: Combination) -> Combined:
    """One LoRA whose update is the weighted sum of those of several."""
    return combine_loras(combination, combination.configs(type(config)))


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Patterns that match no target, biases that two steps would train, and tokens not there."""
    return objections(draft)


@hookimpl(hookspecs.read_foreign)
def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
    """mlx-lm's LoRA and DoRA."""
    return read_mlx(folder) if folder.layout == MLX else None


@hookimpl(hookspecs.write_foreign, LoraConfig)
def write_foreign(config: LoraConfig, request: ForeignRequest) -> ForeignStep | None:
    """For mlx-lm."""
    return write_mlx(request, config) if request.layout == MLX else None
