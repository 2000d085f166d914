"""Read bottleneck adapters from a folder of AdapterHub's."""

import math
from collections.abc import Mapping, Sequence

from tinygrad_peft.errors import ConfigError, nearest
from tinygrad_peft.nn import mismatches
from tinygrad_peft.peft import ForeignFolder, ForeignStep, config_from_dict
from tinygrad_peft_adapter.adapterhub.layout import ACTIVATIONS, LAYER, PLACES, STARTS, Naming
from tinygrad_peft_adapter.adapterhub.settings import BnConfig, read_bn_config
from tinygrad_peft_adapter.config import BottleneckAdapterConfig

__all__ = ["read_adapterhub"]

_OLD_ACTIVATIONS: Mapping[str, str] = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # without a version


def read_adapterhub(folder: ForeignFolder) -> ForeignStep | None:
    """Read the step in a folder of AdapterHub's layout; None for other kinds of adapters.

    Raises ConfigError with everything that is wrong or not supported.
    """
    values = folder.settings.get("config")
    if not isinstance(values, Mapping) or values.get("architecture") is not None:
        return None
    theirs = read_bn_config(values)
    problems = [*_base_problems(folder), *theirs.unsupported()]
    activation = _activation(theirs, folder, problems)
    layers, is_every = _layers(theirs, folder)
    widths = _widths(theirs, folder, layers, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    settings = {
        "placement": _placement(theirs),
        "reads": "residual" if theirs.is_parallel or theirs.original_ln_before else "sublayer",
        "activation": activation,
        "dropout": theirs.dropout,
        "drops": "output",
        "scaling": theirs.scaling,
        "init_weights": STARTS[theirs.init_weights],
        "layers_to_transform": None if is_every else list(layers),
        **widths,
    }
    config = config_from_dict(BottleneckAdapterConfig, settings)
    naming = Naming(str(folder.settings["name"]), _family(folder), _root(folder.shapes))
    wrong = _stored_problems(config, theirs, folder, naming) if folder.base is None else []
    return ForeignStep(config, folder.settings, naming, wrong)


def _root(names: Mapping[str, object]) -> str | None:
    roots = {name[: m.start()] for name in names if (m := LAYER.search(name))}
    return roots.pop() if len(roots) == 1 else None


def _family(folder: ForeignFolder) -> str:
    """Return the base's family; without the base, the one in the settings."""
    return str(folder.settings.get("model_type")) if folder.base is None else folder.base.model_type


def _stored_problems(
    config: BottleneckAdapterConfig, theirs: BnConfig, folder: ForeignFolder, naming: Naming
) -> list[str]:
    """Compare the tensors with the settings, in the layers that the file has."""
    size = folder.settings["hidden_size"]
    assert isinstance(size, int)
    width = config.bottleneck(size)
    shapes: Mapping[str, tuple[int, ...]] = {
        "adapter_down.weight": (width, size),
        "adapter_down.bias": (width,),
        "adapter_up.weight": (size, width),
        "adapter_up.bias": (size,),
    }
    above = [(name[: m.start()], int(m[1])) for name in folder.shapes if (m := LAYER.search(name))]
    places = [
        f"{root}.{layer}.{slot}"
        for root, layer in dict.fromkeys(above)
        for slot in config.slots
        if layer not in theirs.leave_out
    ]
    wanted = {naming(path, name).name: shape for path in places for name, shape in shapes.items()}
    return mismatches(wanted, folder.shapes)


def _base_problems(folder: ForeignFolder) -> list[str]:
    """List what the settings say of their model that the base contradicts, or do not say."""
    base, found = folder.base, []
    name, size = folder.settings.get("name"), folder.settings.get("hidden_size")
    if not isinstance(name, str) or not name:
        found.append(f"name: expected the adapter's name, got {name!r}")
    if type(size) is not int:
        found.append(f"hidden_size: expected an integer, got {size!r}")
    if _family(folder) not in PLACES:
        found.append(f"model_type: expected one of {', '.join(PLACES)}, got {_family(folder)}")
    if base is None:
        return found
    for key in ("model_type", "hidden_size"):
        value, ours = folder.settings.get(key), getattr(base, key)
        if value not in (None, ours):
            found.append(f"{key}: the adapter is for {value!r}, and the base has {ours!r}")
    return found


def _activation(theirs: BnConfig, folder: ForeignFolder, problems: list[str]) -> str:
    """Return the activation's name here; add an unknown one to the problems."""
    name = theirs.non_linearity.lower()
    if "version" not in folder.settings:
        name = _OLD_ACTIVATIONS.get(name, name)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        close = nearest(name, ACTIVATIONS)
        problems.append(f"non_linearity: expected one of {known}, got {name!r}{close}")
    return ACTIVATIONS.get(name, "")


def _layers(theirs: BnConfig, folder: ForeignFolder) -> tuple[Sequence[int], bool]:
    """Return the adapted layers, as far as they are known, and True where they are all."""
    if folder.base is None:
        numbers = {int(m[1]) for name in folder.shapes if (m := LAYER.search(name))}
        return sorted(numbers), not theirs.leave_out
    every = range(folder.base.num_hidden_layers)
    layers = [n for n in every if n not in theirs.leave_out]
    return layers, len(layers) == len(every)


def _placement(theirs: BnConfig) -> str:
    if theirs.is_parallel:
        return "parallel"
    return "houlsby" if theirs.mh_adapter else "pfeiffer"


def _widths(
    theirs: BnConfig, folder: ForeignFolder, layers: Sequence[int], problems: list[str]
) -> dict[str, float | int]:
    """Return the setting for the inner width; add what is wrong with it to the problems."""
    factor = theirs.reduction_factor
    size = folder.settings.get("hidden_size")
    if type(size) is not int:
        return {}
    if isinstance(factor, Mapping):
        absent = [str(n) for n in layers if str(n) not in factor and "default" not in factor]
        if absent:
            problems.append(f"reduction_factor: no factor for layers {', '.join(absent)}")
            return {}
        found = {factor.get(str(n), factor.get("default", 0.0)) for n in layers}
        if len(found) > 1:
            problems.append(
                f"reduction_factor: expected one width for all layers, got {sorted(found)}"
            )
            return {}
        (factor,) = found or {1.0}
    if 1 <= factor <= size:
        return {"reduction_factor": factor}
    if factor <= 0 or not math.isfinite(size / factor):
        problems.append(f"reduction_factor={factor} must leave a width of the hidden size {size}")
        return {}
    return {"bottleneck_dim": max(1, int(size // factor))}
