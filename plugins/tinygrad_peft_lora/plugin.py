"""LoRA's hooks."""

from collections.abc import Sequence

from tinygrad_peft.nn import Affine, Module, TokenEmbedding
from tinygrad_peft.peft import (
    Combination,
    Combined,
    Draft,
    FolderLayout,
    ForeignFolder,
    ForeignRequest,
    ForeignStep,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    bias_elements,
    biased_module,
    hookimpl,
    hookspecs,
)
from tinygrad_peft_lora.checks import objections
from tinygrad_peft_lora.combine_loras import combine_loras
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.dora import DoraLinear
from tinygrad_peft_lora.embedding import DoraEmbedding, LoraEmbedding
from tinygrad_peft_lora.layer import LoraLinear, Mergeable
from tinygrad_peft_lora.mlx_lm import MLX_LM, read_mlx_lm, write_mlx_lm
from tinygrad_peft_lora.residual import ResidualLora
from tinygrad_peft_lora.tokens import adapt_tokens, trained_elements

__all__ = [
    "adapt_module",
    "check_recipe",
    "combine_adapters",
    "count_parameters",
    "foreign_layouts",
    "merge_module",
    "peft_methods",
    "read_foreign",
    "write_foreign",
]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Register LoRA."""
    return [LoraConfig]


@hookimpl(hookspecs.adapt_module, LoraConfig)
def adapt_module(config: LoraConfig, site: Site) -> Module | None:
    """Wrap a target or a module with trained tokens; train the biases that `bias` names."""
    base = biased_module(site, config.bias)
    if site.is_target:
        return _adapted(base, site, config)
    tokens = adapt_tokens(site, config) if config.token_ids() else None
    return tokens or (None if base is site.module else base)


def _adapted(base: Module, site: Site, config: LoraConfig) -> Module | None:
    """Wrap a layer in the LoRA that the settings ask for; None for other modules."""
    given = config, site.path, site.init
    with_norms = site.has_weights and not site.loading  # a folder has the magnitudes
    if isinstance(base, Affine):
        if config.use_dora:
            return DoraLinear(base, *given, from_base=with_norms)
        if config.leaves_residual:
            return ResidualLora(base, *given, from_base=site.has_weights)
        return LoraLinear(base, *given)
    if isinstance(base, TokenEmbedding):
        if config.use_dora:
            return DoraEmbedding(base, *given, from_base=with_norms)
        return LoraEmbedding(base, *given)
    return None


@hookimpl(hookspecs.merge_module, Mergeable)
def merge_module(module: Mergeable) -> Module | None:
    """Return the plain module with the same output, as in W₀ + s B A."""
    return module.merge()


@hookimpl(hookspecs.count_parameters, LoraConfig)
def count_parameters(config: LoraConfig, shape: ModelShape) -> ParameterCount:
    """Σ r (in + out) over the targets, and what the options add to it.

    DoRA adds a magnitude for each output, `lora_bias` a bias. PiSSA and OLoRA keep A₀ and B₀ beside
    A and B, frozen.
    """
    factors = sum(config.rank(t.path) * (t.in_features + t.out_features) for t in shape.targets)
    per_output = sum(t.out_features for t in shape.targets)
    for table in shape.embeddings:
        if table.is_target:
            factors += config.rank(table.path) * (table.num_embeddings + table.embedding_dim)
            per_output += table.embedding_dim
    added = factors + trained_elements(config, shape)
    added += per_output if config.use_dora or config.lora_bias else 0
    start = factors if config.leaves_residual else 0
    trainable = added + bias_elements(config.bias, shape)
    return ParameterCount(trainable=trainable, added=added + start)


@hookimpl(hookspecs.combine_adapters, LoraConfig)
def combine_adapters(config: LoraConfig, combination: Combination) -> Combined:
    """Return one LoRA whose update is the weighted sum of several."""
    return combine_loras(combination, combination.configs(type(config)))


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Refuse patterns without a target, biases trained twice, and missing tokens."""
    return objections(draft)


@hookimpl(hookspecs.foreign_layouts)
def foreign_layouts() -> Sequence[FolderLayout]:
    """Declare mlx-lm's layout."""
    return [MLX_LM]


@hookimpl(hookspecs.read_foreign)
def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
    """Read mlx-lm's LoRA and DoRA."""
    return read_mlx_lm(folder) if folder.layout == MLX_LM.name else None


@hookimpl(hookspecs.write_foreign, LoraConfig)
def write_foreign(config: LoraConfig, request: ForeignRequest) -> ForeignStep | None:
    """Write mlx-lm's layout."""
    return write_mlx_lm(request, config) if request.layout == MLX_LM.name else None
