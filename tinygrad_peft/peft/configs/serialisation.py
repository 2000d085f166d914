"""Settings as JSON values."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from tinygrad_peft.errors import ConfigError, hinted, listed
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.setting_types import convert_setting, setting_types

__all__ = [
    "RESERVED_SETTINGS",
    "config_from_dict",
    "config_from_values",
    "config_to_dict",
    "unknown_settings",
]

C = TypeVar("C", bound=PeftConfig)

# Hugging Face PEFT notes these in every adapter_config.json, beside the method's own settings.
RESERVED_SETTINGS = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type"),
        *("peft_version", "revision", "task_type"),
    )
)


def config_to_dict(config: PeftConfig) -> dict[str, object]:
    """Return the settings as JSON values, with `peft_type` first."""
    values: dict[str, object] = msgspec.to_builtins(config)
    return {"peft_type": config.peft_type, **values}


def config_from_dict(kind: type[C], values: Mapping[str, object], where: str = "") -> C:
    """Make a config of a class from JSON values, strictly.

    A key that the class does not have is an error, unless its value asks for nothing (null, false,
    an empty list or object, or one of the `ignored_settings` of the class's file format): files
    contain these for features that are off. Null means an empty list.

    Raises:
        ConfigError: unknown keys; values of the wrong type (with their paths), or invalid.
    """
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    usual = kind.file_format.ignored_settings.items()
    ignored = RESERVED_SETTINGS | {key for key, value in usual if values.get(key) == value}
    others = {key: value for key, value in values.items() if key not in ignored}
    if unknown := unknown_settings(others, known):
        raise ConfigError(f"{where}unknown settings of {kind.__name__}:\n{listed(unknown)}")
    own = {k: v for k, v in values.items() if k in known and not (v is None and known[k] == ())}
    return config_from_values(kind, own, where, strict=True)


def unknown_settings(values: Mapping[str, object], known: Collection[str]) -> list[str]:
    """List the unknown settings that ask for something, with the nearest known names."""
    unknown = [k for k, value in values.items() if k not in known and not _asks_nothing(value)]
    return [f"{key} = {values[key]!r:.100}{close}" for key, close in hinted(unknown, known)]


def _asks_nothing(value: object) -> bool:
    return value is None or value is False or value in ([], {})


def config_from_values(
    kind: type[C], values: Mapping[str, object], where: str, *, strict: bool
) -> C:
    """Make a config of a class from known settings, each converted to the setting's type.

    Raises ConfigError, which begins with `where`, for missing and invalid settings.
    """
    types = setting_types(kind)
    missing = [f"{name}: missing" for name in _required(kind) if name not in values]
    if missing:
        raise ConfigError(f"{where}invalid {kind.__name__}:\n{listed(missing)}")
    own: dict[str, Any] = {
        name: convert_setting(value, types[name], strict=strict) for name, value in values.items()
    }
    try:
        return kind(**own)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def _required(kind: type[PeftConfig]) -> list[str]:
    """Return the settings without a default."""
    unset = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return [f.name for f in fields if f.default is unset and f.default_factory is unset and f.init]
