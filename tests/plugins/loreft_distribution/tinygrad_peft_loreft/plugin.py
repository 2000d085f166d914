"""LoReFT's answers to the hooks: none to merge_module."""

from collections.abc import Sequence

from tinygrad_peft.errors import failures
from tinygrad_peft.nn import BlockLike, Module, Transformer, TransformerConfig
from tinygrad_peft.peft import (
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    VirtualConfig,
    capture_seams,
    hookimpl,
    hookspecs,
    matches,
)
from tinygrad_peft_loreft.config import LoreftConfig
from tinygrad_peft_loreft.layer import LoreftBlock

__all__ = ["adapt_module", "check_recipe", "count_parameters", "peft_methods"]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """LoReFT."""
    return [LoreftConfig]


@hookimpl(hookspecs.adapt_module, LoreftConfig)
def adapt_module(config: LoreftConfig, site: Site) -> Module | None:
    """Wrap the blocks of the chosen layers."""
    model, block = site.model, site.module
    if site.slot != "blocks" or not isinstance(model, Transformer):
        return None
    if site.layer not in config.layers_of(model.config.num_hidden_layers):
        return None
    assert isinstance(block, BlockLike)
    wrapped = LoreftBlock(block, config, model.config.hidden_size, site.init)
    if config.init_weights == "identity" and not site.loading:
        for intervention in wrapped.interventions:
            intervention.start_as_identity()
    return wrapped


@hookimpl(hookspecs.count_parameters, LoreftConfig)
def count_parameters(config: LoreftConfig, shape: ModelShape) -> ParameterCount:
    """r (2 d + 1) for each intervention: V, W and b."""
    each = config.low_rank_dimension * (2 * shape.config.hidden_size + 1)
    layers = len(set(config.layers_of(shape.config.num_hidden_layers)))
    count = layers * config.interventions * each
    return ParameterCount(trainable=count, added=count)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """List sizes that the model does not have, and blocks where no edit would be made or seen."""
    model = draft.model
    if not isinstance(model, Transformer):
        return []
    return [
        f"step {i}: {objection}"
        for i, config in draft.steps(LoreftConfig)
        for objection in (
            *_wrong_sizes(config, model.config),
            *_unseen(config, draft, model.config),
            *_trained_whole(config, model),
        )
    ]


def _wrong_sizes(config: LoreftConfig, shape: TransformerConfig) -> list[str]:
    width, count, most = shape.hidden_size, shape.num_hidden_layers, shape.max_position_embeddings
    found = [
        f"layers: the model has no layer {n} (it has {count}, from 0)"
        for n in config.layers_of(count)
        if n not in range(count)
    ]
    if config.low_rank_dimension > width:
        found.append(f"low_rank_dimension={config.low_rank_dimension}: expected at most {width}")
    if max(config.first_n, config.last_n) > most:
        sizes = f"first_n={config.first_n}, last_n={config.last_n}"
        found.append(f"{sizes}: expected at most {most}, the most tokens that the model reads")
    return found


def _unseen(config: LoreftConfig, draft: Draft, shape: TransformerConfig) -> list[str]:
    """Object to edits of other tokens than the first, where nothing else is read any more."""
    last = shape.num_hidden_layers - 1
    reads_first = shape.head == "classification" and shape.pooling == "cls"
    if not reads_first or last not in config.layers_of(shape.num_hidden_layers):
        return []
    prompted = any(isinstance(c, VirtualConfig) and c.slot == "prompt" for c in draft.recipe)
    reasons = {
        "a virtual token": prompted,
        "not the last tokens of a prompt": config.interventions == 2 or not config.first_n,
    }
    return [
        f"layers: after layer {last} the classifier reads the first position alone, {reason}: "
        f"name layers below {last}"
        for reason in failures(reasons)
    ]


def _trained_whole(config: LoreftConfig, model: Transformer) -> list[str]:
    """Object to blocks that `modules_to_save` takes: nothing can be put around them."""
    layers = config.layers_of(model.config.num_hidden_layers)
    return [
        f"modules_to_save: {seam.path} is edited: name the layers below it instead"
        for seam in capture_seams(model)
        if seam.name.startswith("blocks.") and seam.layer in layers
        if matches(seam.path, config.modules_to_save)
    ]
