"""Check mlx-lm's file by names and shapes alone, without the model."""

import re
from collections.abc import Mapping, Sequence

from tinygrad_peft.errors import nearest

__all__ = ["contradictions", "within"]


def contradictions(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    names: Sequence[str],
    rank: int,
    keys: Sequence[str] | None,
    num_layers: int,
) -> list[str]:
    """List contradictions to the settings; each adapted module has tensors of these `names`."""
    split = {name: name.rpartition(".") for name in shapes}
    places = list(dict.fromkeys(path for path, _, last in split.values() if last in names))
    return [
        *(f"unexpected: {name}" for name, (_, _, last) in split.items() if last not in names),
        *(f"missing: {p}.{name}" for p in places for name in names if f"{p}.{name}" not in shapes),
        *_rank_problems(shapes, rank),
        *_key_problems(places, keys),
        *_layer_problems([p for p in places if keys is None or within(p)[1] in keys], num_layers),
    ]


def within(path: str) -> tuple[int | None, str]:
    """Split a path into the number of its layer and the path within it."""
    parts = path.split(".")
    place = next((i for i, part in enumerate(parts) if re.fullmatch(r"\d{1,9}", part)), None)
    return (None, "") if place is None else (int(parts[place]), ".".join(parts[place + 1 :]))


def _rank_problems(shapes: Mapping[str, tuple[int, ...]], rank: int) -> list[str]:
    return [
        f"{name}: expected rank {rank}, got shape {shape}"
        for name, shape in shapes.items()
        for half, axis in ((".lora_a", -1), (".lora_b", 0))
        if name.endswith(half) and shape and shape[axis] != rank
    ]


def _key_problems(places: Sequence[str], keys: Sequence[str] | None) -> list[str]:
    """List keys without tensors, and modules without a key."""
    if keys is None:
        return []
    called = {name for path in places for name in (path, within(path)[1]) if name}
    return [
        *(
            f"lora_parameters.keys: {key!r} has no tensors{nearest(key, called, 1)}"
            for key in keys
            if key not in called
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
