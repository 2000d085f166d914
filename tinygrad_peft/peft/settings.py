"""Settings as JSON values, and as text of the command line."""

import dataclasses
import json
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from tinygrad_peft.errors import ConfigError, listed, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.methods import broken_plugins, methods_of

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
    an empty list or object, or what the class passes over), as is written for features that are
    off. Null stands for an empty list.

    Raises:
        ConfigError: an unknown key, a value of the wrong type (with its path) or impossible.
    """
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    over = {key for key, value in kind.passed_over.items() if values.get(key) == value}
    others = {key: value for key, value in values.items() if key not in _BOOKKEEPING | over}
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
    """A config from the command line: `lora:r=8,target_modules=query+value`, or `lora:{JSON}`.

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
    try:
        return msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise ConfigError(f"{where}{error.__cause__}") from None
        unknown = _unknown_choices(kind, values)
        what = f"{kind.__name__} cannot be:\n{listed(unknown)}" if unknown else str(error)
        raise ConfigError(f"{where}{what}") from None


def _unknown_choices(kind: type[PeftConfig], values: Mapping[str, object]) -> list[str]:
    """The values that are none of those that their settings allow, with the nearest of these."""
    hints = typing.get_type_hints(kind)
    found = []
    for name, value in values.items():
        allowed = _choices(hints[name])
        if isinstance(value, str) and allowed and value not in allowed:
            known = ", ".join(allowed)
            found.append(f"{name}={value!r} is none of {known}{nearest(value, allowed)}")
    return found


def _choices(hint: object) -> tuple[str, ...]:
    """The texts that an annotation allows; none where it names no texts."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return tuple(a for a in arguments if isinstance(a, str))
    return tuple(choice for argument in arguments for choice in _choices(argument))


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
