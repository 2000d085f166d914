"""Bottleneck adapters' hooks; they cannot be merged."""

from collections.abc import Sequence

from tinygrad_peft.nn import Attention, Layer, Module, Residual, Transformer
from tinygrad_peft.peft import (
    Draft,
    FolderLayout,
    ForeignFolder,
    ForeignRequest,
    ForeignStep,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    capture_seams,
    hookimpl,
    hookspecs,
    is_saved_whole,
)
from tinygrad_peft_adapter.adapterhub import ADAPTERHUB, read_adapterhub, write_adapterhub
from tinygrad_peft_adapter.config import BottleneckAdapterConfig
from tinygrad_peft_adapter.layer import AttentionAdapter, LayerAdapter, ResidualAdapter

__all__ = [
    "adapt_module",
    "check_recipe",
    "count_parameters",
    "foreign_layouts",
    "peft_methods",
    "read_foreign",
    "write_foreign",
]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Register bottleneck adapters."""
    return [BottleneckAdapterConfig]


@hookimpl(hookspecs.adapt_module, BottleneckAdapterConfig)
def adapt_module(config: BottleneckAdapterConfig, site: Site) -> Module | None:
    """Add an adapter after attention, and after or beside the feed-forward layer."""
    if not isinstance(site.model, Transformer):
        return None
    if not _is_place(config, site.model, site.slot, site.layer):
        return None
    base, width = site.module, site.model.config.hidden_size
    if site.slot == "attn" and isinstance(base, Attention):
        return AttentionAdapter(base, config, width, site.init)
    if site.slot == "mlp" and isinstance(base, Layer):
        return LayerAdapter(base, config, width, site.init)
    if isinstance(base, Residual):
        return ResidualAdapter(base, config, width, site.init)
    return None


@hookimpl(hookspecs.count_parameters, BottleneckAdapterConfig)
def count_parameters(config: BottleneckAdapterConfig, shape: ModelShape) -> ParameterCount:
    """2 d m per adapter, with m + d for the biases and 2 d for the layer norm."""
    width = shape.config.hidden_size
    inner = config.bottleneck(width)
    each = 2 * width * inner
    if config.bias:
        each += inner + width
    if config.layer_norm:
        each += 2 * width
    places = len(set(config.layers(shape.config.num_hidden_layers))) * len(config.slots)
    return ParameterCount(trainable=places * each, added=places * each)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Refuse missing layers, reductions to nothing, and adapters on modules trained whole."""
    model = draft.model
    if not isinstance(model, Transformer):
        return []
    return [
        f"step {i}: {objection}"
        for i, config in draft.steps(BottleneckAdapterConfig)
        for objection in _objections(config, model)
    ]


@hookimpl(hookspecs.foreign_layouts)
def foreign_layouts() -> Sequence[FolderLayout]:
    """Declare AdapterHub's layout."""
    return [ADAPTERHUB]


@hookimpl(hookspecs.read_foreign)
def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
    """Read AdapterHub's bottleneck adapters."""
    return read_adapterhub(folder) if folder.layout == ADAPTERHUB.name else None


@hookimpl(hookspecs.write_foreign, BottleneckAdapterConfig)
def write_foreign(config: BottleneckAdapterConfig, request: ForeignRequest) -> ForeignStep | None:
    """Write AdapterHub's layout."""
    return write_adapterhub(request, config) if request.layout == ADAPTERHUB.name else None


def _objections(config: BottleneckAdapterConfig, model: Transformer) -> list[str]:
    width, count = model.config.hidden_size, model.config.num_hidden_layers
    found = [
        f"layers_to_transform: the model has no layer {n} (it has {count}, from 0)"
        for n in config.layers(count)
        if n not in range(count)
    ]
    if config.reduction_factor is not None and not config.bottleneck(width):
        found.append(
            f"reduction_factor={config.reduction_factor:g} must be at most the hidden size {width}"
        )
    found += [
        f"modules_to_save: {seam.path} gets an adapter: name the layers below it instead"
        for seam in capture_seams(model)
        if _is_place(config, model, seam.name, seam.layer) and is_saved_whole(config, seam.path)
    ]
    return found


def _is_place(
    config: BottleneckAdapterConfig, model: Transformer, slot: str, layer: int | None
) -> bool:
    """Tell whether the config adapts this field of this layer."""
    layers = config.layers(model.config.num_hidden_layers)
    return slot in config.slots and layer is not None and layer in layers
