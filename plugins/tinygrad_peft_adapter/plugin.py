"""The answers of bottleneck adapters to the hooks: none to merge_module."""

from collections.abc import Sequence

from tinygrad_peft.nn import Attention, Layer, Module, Residual, Transformer
from tinygrad_peft.peft import (
    Draft,
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
)
from tinygrad_peft_adapter.adapterhub import ADAPTERHUB, read_adapterhub, write_adapterhub
from tinygrad_peft_adapter.config import BottleneckAdapterConfig
from tinygrad_peft_adapter.layer import AttentionAdapter, LayerAdapter, ResidualAdapter

__all__ = [
    "adapt_module",
    "check_recipe",
    "count_parameters",
    "peft_methods",
    "read_foreign",
    "write_foreign",
]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Bottleneck adapters."""
    return [BottleneckAdapterConfig]


@hookimpl(hookspecs.adapt_module, BottleneckAdapterConfig)
def adapt_module(config: BottleneckAdapterConfig, site: Site) -> Module | None:
    """Put an adapter after a layer's attention, and after or beside its feed-forward layer."""
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
    """2 d m for each place, with m + d for the biases and 2 d for the layer norm."""
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
    """Layers that are not there, reductions to nothing, places that are trained whole."""
    model = draft.model
    if not isinstance(model, Transformer):
        return []
    return [
        f"step {i}: {objection}"
        for i, config in draft.steps(BottleneckAdapterConfig)
        for objection in _objections(config, model)
    ]


@hookimpl(hookspecs.read_foreign)
def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
    """AdapterHub's bottleneck adapters."""
    return read_adapterhub(folder) if folder.layout == ADAPTERHUB else None


@hookimpl(hookspecs.write_foreign, BottleneckAdapterConfig)
def write_foreign(config: BottleneckAdapterConfig, request: ForeignRequest) -> ForeignStep | None:
    """For AdapterHub."""
    return write_adapterhub(request, config) if request.layout == ADAPTERHUB else None


def _objections(config: BottleneckAdapterConfig, model: Transformer) -> list[str]:
    width, count = model.config.hidden_size, model.config.num_hidden_layers
    found = [
        f"layers_to_transform: the model has no layer {n} (it has {count}, from 0)"
        for n in config.layers(count)
        if n not in range(count)
    ]
    if config.reduction_factor is not None and not config.bottleneck(width):
        found.append(
            f"reduction_factor={config.reduction_factor:g} leaves nothing of the hidden size "
            f"{width}: it can be {width} at most"
        )
    found += [
        f"modules_to_save: {seam.path} is where an adapter goes: name the layers below it instead"
        for seam in capture_seams(model)
        if _is_place(config, model, seam.name, seam.layer)
        and _within(seam.path, config.modules_to_save)
    ]
    return found


def _is_place(
    config: BottleneckAdapterConfig, model: Transformer, slot: str, layer: int | None
) -> bool:
    """Whether an adapter belongs into this field of this layer."""
    layers = config.layers(model.config.num_hidden_layers)
    return slot in config.slots and layer is not None and layer in layers


def _within(path: str, names: Sequence[str]) -> bool:
    """Whether a name, by whole segments, is that of the path or of anything above it."""
    parts = path.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(p == name or p.endswith(f".{name}") for p in above for name in names)
