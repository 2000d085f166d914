"""Read a LoRA from a folder of mlx-lm's."""

from collections.abc import Collection, Mapping, Sequence

from tinygrad_peft.errors import ConfigError, hinted
from tinygrad_peft.peft import ForeignFolder, ForeignStep
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.mlx_lm.layout import (
    Naming,
    Settings,
    family_problems,
    read_settings,
    within,
)

__all__ = ["read_mlx_lm"]


def read_mlx_lm(folder: ForeignFolder) -> ForeignStep:
    """Read the step in a folder of mlx-lm's layout. Raises ConfigError with everything wrong."""
    settings = read_settings(folder.settings)
    if problems := family_problems(folder.base):
        raise ConfigError("\n".join(problems))
    wrong = _stored_problems(settings, folder.shapes) if folder.base is None else []
    return ForeignStep(_config(settings, folder), folder.settings, Naming(folder.base), wrong)


def _config(settings: Settings, folder: ForeignFolder) -> LoraConfig:
    own, naming = settings.lora_parameters, Naming(folder.base)
    keys = _stored_places(folder.shapes) if own.keys is None else own.keys
    return LoraConfig(
        r=own.rank,
        lora_alpha=_alpha(own.scale, own.rank),
        lora_dropout=own.dropout,
        use_dora=settings.fine_tune_type == "dora",
        target_modules=[naming.place(key) for key in keys],
        layers_to_transform=_layers(settings.num_layers, folder),
    )


def _layers(last: int, folder: ForeignFolder) -> list[int] | None:
    """Return the adapted layers, or None for all of them.

    Without the model, they are the layers in the file, and the last one is taken for the model's.
    """
    if folder.base is not None:
        depth = folder.base.num_hidden_layers
        return list(range(depth - last, depth)) if 0 < last < depth else None
    found = sorted({layer for name in folder.shapes if (layer := within(name)[0]) is not None})
    return found if found and 0 < last <= found[-1] else None


def _stored_places(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List the places that a file has tensors for: by their paths in a layer, if all have the same.

    mlx-lm adapts others without `keys`, every linear layer or q_proj and v_proj by its version, but
    what has no tensors starts as nothing.
    """
    paths = dict.fromkeys(name.rpartition(".")[0] for name in shapes)
    by_layer: dict[int, set[str]] = {}
    for path in paths:
        layer, place = within(path)
        if layer is not None:
            by_layer.setdefault(layer, set()).add(place)
    if len({frozenset(places) for places in by_layer.values()}) > 1:
        return list(paths)
    outside = [path for path in paths if within(path)[0] is None]
    return sorted({place for places in by_layer.values() for place in places}) + outside


def _alpha(scale: float, rank: int) -> float:
    """Return the α with α/r = scale, with few digits where possible."""
    alpha = scale * rank
    short = round(alpha, 9)
    return short if rank and short / rank == scale else alpha


def _stored_problems(settings: Settings, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List contradictions of the settings to the file's names and shapes, without the model."""
    own = settings.lora_parameters
    names = ("lora_a", "lora_b", "m") if settings.fine_tune_type == "dora" else ("lora_a", "lora_b")
    split = {name: name.rpartition(".") for name in shapes}
    places = list(dict.fromkeys(path for path, _, last in split.values() if last in names))
    named = [p for p in places if own.keys is None or within(p)[1] in own.keys]
    return [
        *(f"unexpected: {name}" for name, (_, _, last) in split.items() if last not in names),
        *(f"missing: {p}.{name}" for p in places for name in names if f"{p}.{name}" not in shapes),
        *_rank_problems(shapes, own.rank),
        *_key_problems(places, own.keys),
        *([] if own.keys is None else _layer_problems(named, settings.num_layers)),
    ]


def _rank_problems(shapes: Mapping[str, tuple[int, ...]], rank: int) -> list[str]:
    return [
        f"{name}: expected rank {rank}, got shape {shape}"
        for name, shape in shapes.items()
        for half, axis in ((".lora_a", -1), (".lora_b", 0))
        if name.endswith(half) and shape and shape[axis] != rank
    ]


def _key_problems(places: Sequence[str], keys: Collection[str] | None) -> list[str]:
    """List keys without tensors, and modules without a key."""
    if keys is None:
        return []
    called = {name for path in places for name in (path, within(path)[1]) if name}
    absent, keys = [key for key in keys if key not in called], frozenset(keys)
    return [
        *(
            f"lora_parameters.keys: {key!r} has no tensors{close}"
            for key, close in hinted(absent, sorted(called), 1)
        ),
        *(
            f"{path}: has tensors, but is not in lora_parameters.keys"
            for path in places
            if path not in keys and within(path)[1] not in keys
        ),
    ]


def _layer_problems(paths: Sequence[str], num_layers: int) -> list[str]:
    """List modules outside the last `num_layers`; the file's last layer counts as the model's."""
    layers: dict[str, set[int]] = {}
    for path in paths:
        layer, place = within(path)
        if layer is not None:
            layers.setdefault(place, set()).add(layer)
    last = max((max(found) for found in layers.values()), default=0)
    first = max(0, last + 1 - num_layers) if num_layers > 0 else 0
    return [
        f"{place}: expected tensors in layers {first} to {last} (num_layers={num_layers}), "
        f"got {', '.join(map(str, sorted(found)))}"
        for place, found in layers.items()
        if min(found) != first or len(found) != last + 1 - first
    ]
