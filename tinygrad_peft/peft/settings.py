"""Settings as JSON values, and as text of the command line."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from tinygrad_peft.errors import ConfigError, listed, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.methods import broken_plugins, methods_of
from tinygrad_peft.peft.setting_types import convert_setting, setting_types

__all__ = ["config_from_dict", "config_to_dict", "parse_method", "unknown_settings"]

C = TypeVar("C", bound=PeftConfig)

# What Hugging Face PEFT notes in every adapter_config.json beside the method's own settings.
_BOOKKEEPING = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type"),
        *("peft_version", "revision", "task_type"),
    )
)


def config_to_dict(config: PeftConfig) -> dict[str, object]:
    """The settings as JSON values, with `peft_type` first."""
    values: dict[str, object] = msgspec.to_builtins(config)
    return {"peft_type": config.peft_type, **values}


def config_from_dict(kind: type[C], values: Mapping[str, object], where: str = "") -> C:
    """Settings of a class from JSON values, strictly.

    A key that the class does not have is an error, unless its value asks for nothing (null, false,
    an empty list or object, or one of the `ignored_settings` of the class's file format), as is
    written for features that are off. Null stands for an empty list.

    Raises:
        ConfigError: an unknown key, a value of the wrong type (with its path) or impossible.
    """
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    usual = kind.file_format.ignored_settings.items()
    ignored = _BOOKKEEPING | {key for key, value in usual if values.get(key) == value}
    others = {key: value for key, value in values.items() if key not in ignored}
    if unknown := unknown_settings(others, known):
        raise ConfigError(f"{where}{kind.__name__} does not know:\n{listed(unknown)}")
    own = {k: v for k, v in values.items() if k in known and not (v is None and known[k] == ())}
    return _convert(kind, own, where, strict=True)


def unknown_settings(values: Mapping[str, object], known: Collection[str]) -> list[str]:
    """The settings that are not known and ask for something, with the nearest names that are."""
    return [
        f"{key} = {value!r}{nearest(key, known)}"
        for key, value in values.items()
        if key not in known and not _asks_nothing(value)
    ]


def parse_method(text: str, host: Host) -> PeftConfig:
    """A config from the command line: `NAME:r=8,target_modules=query+value`, or `NAME:{JSON}`.

    Lists are joined by `+`; the name is that of a method of the host's plugins, in any case.

    Raises:
        ConfigError: an unknown method or key, with the nearest ones; a value that does not fit.
    """
    name, _, settings = text.partition(":")
    methods = methods_of(host)
    kind = methods.get(name.strip().lower())
    if kind is None:
        known = ", ".join(methods) or "none: no plugin is installed"
        close = nearest(name.lower(), methods) or f"; there are {known}"
        raise ConfigError(f"no method is called {name!r}{close}{broken_plugins(host)}")
    where = f"{name}: "
    if settings.lstrip().startswith("{"):
        return config_from_dict(kind, _json_object(settings, where), where)
    values: dict[str, object] = {}
    for part in filter(None, settings.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{where}{part!r} is no setting: write KEY=VALUE")
        if key.strip() in values:
            raise ConfigError(f"{where}{key.strip()} is set twice (+ joins the names of a list)")
        values[key.strip()] = _text_value(kind, key.strip(), value.strip())
    unknown = [key for key in values if key not in {f.name for f in dataclasses.fields(kind)}]
    if unknown:
        known_keys = [f.name for f in dataclasses.fields(kind)]
        raise ConfigError(
            f"{where}unknown settings:\n" + listed(k + nearest(k, known_keys) for k in unknown)
        )
    return _convert(kind, values, where, strict=False)


def _asks_nothing(value: object) -> bool:
    return value is None or value is False or value in ([], {})


def _convert(kind: type[C], values: Mapping[str, object], where: str, *, strict: bool) -> C:
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


def _text_value(kind: type[PeftConfig], key: str, value: str) -> object:
    """`a+b` as a list where the setting can be one."""
    annotation = str(next((f.type for f in dataclasses.fields(kind) if f.name == key), ""))
    if "Sequence" not in annotation or value == "all-linear":
        return {"true": True, "false": False}.get(value.lower(), value)
    return value.split("+")


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}a JSON object is expected")
    return values
