"""Bottleneck adapters as AdapterHub reads and writes them (adapters 1.3: methods/bottleneck.py).

With r the hidden states that a sublayer's output h is added to, and `norm` what follows the sum, if
anything does there (in BERT, not in GPT-2 and Llama), its three kinds give the block

    double_seq_bn   norm(r + h + u(h))                  placement="houlsby"
    seq_bn          norm(r + h + u(norm(r + h)))        placement="pfeiffer", reads="residual"
    par_bn          norm(r + h + u(r))                  placement="parallel", reads="residual"

`original_ln_before` says whether u reads the sum. In training the base's own dropout comes before u
there, and behind it here where u reads the sublayer.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tinygrad_peft.errors import ConfigError, failures, nearest
from tinygrad_peft.models import config_to_json
from tinygrad_peft.nn import TransformerConfig, mismatches
from tinygrad_peft.peft import (
    FolderLayout,
    ForeignFolder,
    ForeignName,
    ForeignRequest,
    ForeignStep,
    config_from_dict,
)
from tinygrad_peft_adapter.bn_config import STARTS, BnConfig, read_bn_config
from tinygrad_peft_adapter.config import BottleneckAdapterConfig

__all__ = ["ADAPTERHUB", "read_adapterhub", "write_adapterhub"]

_TOP = frozenset(("hidden_size", "model_class", "model_name", "model_type", "name"))


def _recognises(settings: Mapping[str, object]) -> bool:
    return "config" in settings and len(_TOP & settings.keys()) > 1


def _kind_of(settings: Mapping[str, object]) -> str:
    config = settings.get("config")
    named = config.get("architecture") if isinstance(config, Mapping) else None
    return "bottleneck" if named is None else str(named)


ADAPTERHUB = FolderLayout(
    name="AdapterHub",
    weights="adapter.safetensors",
    never_read="pytorch_adapter.bin",
    save_again="with save_adapter(..., use_safetensors=True) of AdapterHub's adapters",
    base_key="model_name",
    noted=("name", "model_type", "model_name", "version"),
    tensor_names=r".*\.(adapters|loras|prefix_tunings|prompt_tunings)\..*",
    recognises=_recognises,
    kind_of=_kind_of,
)
_VERSION = "adapters.1.3.0"
_ACTIVATIONS: Mapping[str, str] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "swish": "silu",
    "tanh": "tanh",
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_OLD_ACTIVATIONS: Mapping[str, str] = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # without a version
# After attention and after the feed-forward layer, in a layer.
_PLACES: Mapping[str, tuple[str, str]] = {
    "gpt2": ("attention_adapters", "output_adapters"),
    "llama": ("attention_adapters", "output_adapters"),
    "bert": ("attention.output", "output"),
}
_NAMES: Mapping[str, str] = {
    "adapter_down.weight": "adapter_down.0.weight",
    "adapter_down.bias": "adapter_down.0.bias",
    "adapter_up.weight": "adapter_up.weight",
    "adapter_up.bias": "adapter_up.bias",
}
_LAYER = re.compile(r"\.(\d{1,9})\.")


def read_adapterhub(folder: ForeignFolder) -> ForeignStep | None:
    """The step in a folder of AdapterHub's layout; None if it is no bottleneck adapter.

    Raises ConfigError with all that is wrong, or that there is no equal of.
    """
    values = folder.settings.get("config")
    if not isinstance(values, Mapping) or values.get("architecture") is not None:
        return None
    theirs = read_bn_config(values)
    problems = [*_other_model(folder), *theirs.unequalled()]
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
    naming = _Naming(str(folder.settings["name"]), _family(folder), _root(folder.shapes))
    wrong = _stored_problems(config, theirs, folder, naming) if folder.base is None else []
    return ForeignStep(config, folder.settings, naming, wrong)


def write_adapterhub(request: ForeignRequest, config: BottleneckAdapterConfig) -> ForeignStep:
    """The step in AdapterHub's layout. Raises ConfigError with all that this cannot hold."""
    base = request.base
    if problems := _unequalled(config, base):
        raise ConfigError("\n".join(problems))
    activations = dict(reversed([(ours, theirs) for theirs, ours in _ACTIVATIONS.items()]))
    chosen = set(config.layers(base.num_hidden_layers))
    theirs = BnConfig(
        mh_adapter=config.placement == "houlsby",
        output_adapter=True,
        is_parallel=config.placement == "parallel",
        original_ln_before=config.reads == "residual" and config.placement != "parallel",
        non_linearity=activations[config.activation],
        reduction_factor=_reduction(config, base.hidden_size),
        scaling=float(config.scale),
        dropout=config.dropout,
        init_weights="mam_adapter" if config.init_weights == "identity" else "houlsby",
        leave_out=[n for n in range(base.num_hidden_layers) if n not in chosen],
    )
    settings = {
        "config": msgspec.to_builtins(theirs),
        "hidden_size": base.hidden_size,
        "model_class": _model_class(base),
        "model_name": request.base_name or "",
        "model_type": base.model_type,
        "name": request.adapter,
        "version": _VERSION,
    }
    return ForeignStep(config, settings, _Naming(request.adapter, base.model_type, None))


@dataclass(frozen=True)
class _Naming:
    """AdapterHub's names; `root` is what a file that is read has before the number of a layer."""

    adapter: str
    family: str
    root: str | None

    def __call__(self, path: str, name: str) -> ForeignName:
        before, layer, place = _LAYER.split(path, maxsplit=1)
        after = _PLACES[self.family][place.startswith("mlp")]
        root = self.root if self.root and _same_place(self.root, before) else before
        return ForeignName(f"{root}.{layer}.{after}.adapters.{self.adapter}.{_NAMES[name]}")


def _same_place(one: str, other: str) -> bool:
    """Whether both paths name one module, as a model with a head and a bare one do."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def _root(names: Mapping[str, object]) -> str | None:
    roots = {name[: m.start()] for name in names if (m := _LAYER.search(name))}
    return roots.pop() if len(roots) == 1 else None


def _family(folder: ForeignFolder) -> str:
    """The family of the model, of which the settings tell where it is not known."""
    return str(folder.settings.get("model_type")) if folder.base is None else folder.base.model_type


def _stored_problems(
    config: BottleneckAdapterConfig, theirs: BnConfig, folder: ForeignFolder, naming: _Naming
) -> list[str]:
    """How the tensors differ from what the settings ask for in the layers that they are in."""
    size = folder.settings["hidden_size"]
    assert isinstance(size, int)
    width = config.bottleneck(size)
    shapes: Mapping[str, tuple[int, ...]] = {
        "adapter_down.weight": (width, size),
        "adapter_down.bias": (width,),
        "adapter_up.weight": (size, width),
        "adapter_up.bias": (size,),
    }
    above = [(name[: m.start()], int(m[1])) for name in folder.shapes if (m := _LAYER.search(name))]
    places = [
        f"{root}.{layer}.{slot}"
        for root, layer in dict.fromkeys(above)
        for slot in config.slots
        if layer not in theirs.leave_out
    ]
    wanted = {naming(path, name).name: shape for path in places for name, shape in shapes.items()}
    return mismatches(wanted, folder.shapes)


def _other_model(folder: ForeignFolder) -> list[str]:
    """What the adapter says of its model that is otherwise in the base, or does not say."""
    base, found = folder.base, []
    name, size = folder.settings.get("name"), folder.settings.get("hidden_size")
    if not isinstance(name, str) or not name:
        found.append(f"name={name!r}: the adapter's name is expected")
    if type(size) is not int:
        found.append(f"hidden_size={size!r}: the model's is expected, a whole number")
    if _family(folder) not in _PLACES:
        found.append(f"the model is of none of the families {', '.join(_PLACES)}")
    if base is None:
        return found
    for key in ("model_type", "hidden_size"):
        value, ours = folder.settings.get(key), getattr(base, key)
        if value not in (None, ours):
            found.append(f"it was made for a model of {key} {value!r}, and this is {ours!r}")
    return found


def _activation(theirs: BnConfig, folder: ForeignFolder, problems: list[str]) -> str:
    """Its activation by our name; that there is none joins the problems."""
    name = theirs.non_linearity.lower()
    if "version" not in folder.settings:
        name = _OLD_ACTIVATIONS.get(name, name)
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        problems.append(f"non_linearity={name!r} is none of {known}{nearest(name, _ACTIVATIONS)}")
    return _ACTIVATIONS.get(name, "")


def _layers(theirs: BnConfig, folder: ForeignFolder) -> tuple[Sequence[int], bool]:
    """The layers that are adapted, as far as the model is known, and whether they are all."""
    if folder.base is None:
        numbers = {int(m[1]) for name in folder.shapes if (m := _LAYER.search(name))}
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
    """The setting of the inner width; what is wrong with it joins the problems."""
    factor = theirs.reduction_factor
    size = folder.settings.get("hidden_size")
    if type(size) is not int:
        return {}
    if isinstance(factor, Mapping):
        absent = [str(n) for n in layers if str(n) not in factor and "default" not in factor]
        if absent:
            problems.append(f"reduction_factor has none for the layers {', '.join(absent)}")
            return {}
        found = {factor.get(str(n), factor.get("default", 0.0)) for n in layers}
        if len(found) > 1:
            problems.append(f"reduction_factor {sorted(found)}: all layers have one width here")
            return {}
        (factor,) = found or {1.0}
    if 1 <= factor <= size:
        return {"reduction_factor": factor}
    if factor <= 0 or not math.isfinite(size / factor):
        problems.append(f"reduction_factor={factor} of the hidden size {size} is no width")
        return {}
    return {"bottleneck_dim": max(1, int(size // factor))}


def _reduction(config: BottleneckAdapterConfig, size: int) -> float:
    """A factor by which the size leaves the inner width."""
    if config.reduction_factor is not None:
        return float(config.reduction_factor)
    width = config.bottleneck(size)
    factor = size / width
    while int(size // factor) < width:
        factor = math.nextafter(factor, 0)
    return factor


def _unequalled(config: BottleneckAdapterConfig, base: TransformerConfig) -> list[str]:
    """What of the settings AdapterHub has not."""
    beside_norm = config.placement == "parallel" and base.norm_position == "pre"
    rules = {
        f"it has models of the families {', '.join(_PLACES)} alone": base.model_type not in _PLACES,
        'placement="parallel" needs reads="residual" in a model whose norms come first': (
            beside_norm and config.reads == "sublayer"
        ),
        "bias=False: its adapters have biases": not config.bias,
        "layer_norm: its library cannot write that as safetensors": config.layer_norm,
        'dropout needs drops="output"': (bool(config.dropout) and config.drops == "bottleneck"),
        "modules_to_save: it trains no modules whole": bool(config.modules_to_save),
    }
    return failures(rules)


def _model_class(base: TransformerConfig) -> str:
    """transformers' class for the model."""
    names = config_to_json(base)["architectures"]
    return str(names[0]) if isinstance(names, list) else ""
