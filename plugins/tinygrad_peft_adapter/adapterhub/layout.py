"""The layout of AdapterHub's folders, and its names for modules, tensors and activations."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tinygrad_peft.peft import FolderLayout, ForeignName

__all__ = ["ACTIVATIONS", "ADAPTERHUB", "LAYER", "PLACES", "STARTS", "Naming"]

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
ACTIVATIONS: Mapping[str, str] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "swish": "silu",
    "tanh": "tanh",
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
STARTS: Mapping[str, str] = {
    "mam_adapter": "identity",
    "houlsby": "near_identity",
    "bert": "near_identity",
}
# After attention and after the feed-forward layer, in a layer.
PLACES: Mapping[str, tuple[str, str]] = {
    "gpt2": ("attention_adapters", "output_adapters"),
    "llama": ("attention_adapters", "output_adapters"),
    "bert": ("attention.output", "output"),
}
LAYER = re.compile(r"\.(\d{1,9})\.")
_NAMES: Mapping[str, str] = {
    "adapter_down.weight": "adapter_down.0.weight",
    "adapter_down.bias": "adapter_down.0.bias",
    "adapter_up.weight": "adapter_up.weight",
    "adapter_up.bias": "adapter_up.bias",
}


@dataclass(frozen=True)
class Naming:
    """AdapterHub's names; `root` is the part before a layer's number in the file that is read."""

    adapter: str
    family: str
    root: str | None = None

    def __call__(self, path: str, name: str) -> ForeignName:
        before, layer, place = LAYER.split(path, maxsplit=1)
        after = PLACES[self.family][place.startswith("mlp")]
        root = self.root if self.root and _is_same_module(self.root, before) else before
        return ForeignName(f"{root}.{layer}.{after}.adapters.{self.adapter}.{_NAMES[name]}")


def _is_same_module(one: str, other: str) -> bool:
    """Compare a path in a model with a head with one in a bare model."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")
