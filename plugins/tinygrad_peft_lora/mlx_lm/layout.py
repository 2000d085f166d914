"""The layout of mlx-lm's folders: its settings, and its names for modules and tensors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import msgspec

from tinygrad_peft.errors import ConfigError, failures
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import FolderLayout, ForeignName, unknown_settings

__all__ = ["ABSENT", "MLX_LM", "Naming", "Settings", "family_problems", "read_settings", "within"]

_KINDS = ("lora", "dora")
_EMBEDDINGS = frozenset(("model.embed_tokens", "model.wte", "model.wpe"))
_OWN = frozenset(("fine_tune_type", "lora_layers", "lora_parameters", "num_layers"))


def _recognises(settings: Mapping[str, object]) -> bool:
    return bool(_OWN & settings.keys()) and "peft_type" not in settings


def _kind_of(settings: Mapping[str, object]) -> str:
    return str(settings.get("fine_tune_type", "lora"))


MLX_LM = FolderLayout(
    name="mlx-lm",
    weights="adapters.safetensors",
    never_read="adapters.npz",
    save_again="with a current mlx-lm",
    base_key="model",
    noted=("model",),
    tensor_names=r".*\.lora_[ab]",
    recognises=_recognises,
    kind_of=_kind_of,
)
# The start of a checkpoint's paths where mlx-lm has "model", for the families that it supports.
_ROOTS: Mapping[str, str] = {"gpt2": "transformer.", "llama": "model."}
# Modules that mlx-lm's models of a family do not have.
ABSENT: Mapping[str, Sequence[str]] = {
    "gpt2": ("classifier", "lm_head"),
    "llama": ("classifier",),
}
_NAMES: Mapping[str, ForeignName] = {
    "lora_A.weight": ForeignName("lora_a", transposed=True),
    "lora_B.weight": ForeignName("lora_b", transposed=True),
    "lora_embedding_A": ForeignName("lora_a", transposed=True),
    "lora_embedding_B": ForeignName("lora_b", transposed=True),
    "lora_magnitude_vector": ForeignName("m"),
}


@dataclass(frozen=True)
class Naming:
    """mlx-lm's names in a model of the base's family."""

    base: TransformerConfig | None

    def __call__(self, path: str, name: str) -> ForeignName:
        known = _NAMES[name]
        return ForeignName(f"{self.path(path)}.{known.name}", transposed=known.transposed)

    @property
    def _root(self) -> str:
        return _ROOTS["llama" if self.base is None else self.base.model_type]

    def path(self, path: str) -> str:
        """Return mlx-lm's path for a path in the checkpoint."""
        bare = path.removeprefix(self._root)
        return bare if bare == "lm_head" else f"model.{bare}"

    def place(self, path: str) -> str:
        """Return the checkpoint's path for mlx-lm's; paths within a layer are the same in both."""
        bare = path.removeprefix("model.")
        rooted = self.base is None or self.base.head != "none"
        return f"{self._root}{bare}" if rooted and bare != path else bare


def family_problems(base: TransformerConfig | None) -> list[str]:
    """Refuse a base of a family that mlx-lm does not support."""
    if base is None or base.model_type in _ROOTS:
        return []
    found = base.model_type or "a model without a family"
    return [f"mlx-lm: expected one of {', '.join(_ROOTS)}, got {found}"]


def within(path: str) -> tuple[int | None, str]:
    """Split a path into the number of its layer and the path within it."""
    parts = path.split(".")
    place = next((i for i, part in enumerate(parts) if re.fullmatch(r"\d{1,9}", part)), None)
    return (None, "") if place is None else (int(parts[place]), ".".join(parts[place + 1 :]))


@dataclass(frozen=True)
class Parameters:
    """`lora_parameters`."""

    rank: int
    scale: float
    dropout: float = 0.0
    keys: Sequence[str] | None = None


@dataclass(frozen=True)
class Settings:
    """The settings in adapter_config.json that describe the adapter."""

    num_layers: int
    lora_parameters: Parameters
    fine_tune_type: str = "lora"

    def problems(self) -> list[str]:
        """List kinds, scales and keys that cannot be read."""
        own, kind = self.lora_parameters, self.fine_tune_type
        rules = {
            f"fine_tune_type: expected 'lora' or 'dora', got {kind!r}": kind not in _KINDS,
            f"lora_parameters.scale={own.scale:g} must be a number other than 0": not own.scale,
            "lora_parameters.keys is empty: nothing is adapted": (
                own.keys is not None and not own.keys
            ),
            "fine_tune_type 'dora' on an embedding: its magnitudes differ here": (
                kind == "dora" and bool(_EMBEDDINGS.intersection(own.keys or ()))
            ),
        }
        return failures(rules)


def read_settings(values: Mapping[str, object]) -> Settings:
    """Read the settings. Raises ConfigError with everything wrong."""
    if values.get("fine_tune_type") == "full":
        raise ConfigError(
            "fine_tune_type 'full': expected an adapter, got all of a model's weights"
        )
    parameters, problems = values.get("lora_parameters"), list[str]()
    if isinstance(parameters, Mapping):
        unknown = unknown_settings(parameters, [field.name for field in fields(Parameters)])
        problems += [f"lora_parameters has the unknown {setting}" for setting in unknown]
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError("\n".join([*problems, str(error)])) from None
    if problems := problems + settings.problems():
        raise ConfigError("\n".join(problems))
    return settings
