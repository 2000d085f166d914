"""mlx-lm's settings, as far as they say how an adapter is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import msgspec

from tinygrad_peft.errors import ConfigError, failures
from tinygrad_peft.peft import unknown_settings

__all__ = ["Settings", "read_settings"]

_KINDS = ("lora", "dora")
_EMBEDDINGS = frozenset(("model.embed_tokens", "model.wte", "model.wpe"))


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
