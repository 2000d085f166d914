"""Methods by name: those that plugins provide, and configs from the command line's text."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from tinygrad_peft.errors import ConfigError, hinted, listed, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.serialisation import config_from_dict, config_from_values

__all__ = ["broken_plugins", "methods_of", "parse_method"]


def methods_of(host: Host) -> Mapping[str, type[PeftConfig]]:
    """Return every method's config class by its name in lower case, sorted."""
    kinds = (kind for answer in host.each(hookspecs.peft_methods) for kind in answer)
    return dict(sorted((kind.peft_type.lower(), kind) for kind in kinds))


def broken_plugins(host: Host) -> str:
    """Return the broken plugins, if any, to end a message about a missing method."""
    broken = [info for info in host.plugins() if info.error]
    if not broken:
        return ""
    # The title is left out where the error already names the plugin.
    errors = (i.error if i.title in i.error else f"{i.title}: {i.error}" for i in broken)
    found = listed(" ".join(error.split()) for error in errors)
    return f"\nbroken plugins that might provide it:\n{found}"


def parse_method(text: str, host: Host) -> PeftConfig:
    """Parse a config from text: `NAME:r=8,target_modules=query+value`, or `NAME:{JSON}`.

    `+` joins the elements of a list. The name is a method of the host's plugins, in any case.

    Raises:
        ConfigError: unknown methods and settings, with the nearest ones; invalid values.
    """
    name, _, settings = text.partition(":")
    methods = methods_of(host)
    kind = methods.get(name.strip().lower())
    if kind is None:
        there = f"there are: {', '.join(methods)}" if methods else "no plugin is installed"
        close = nearest(name.lower(), methods) or f" ({there})"
        raise ConfigError(f"unknown method {name!r}{close}{broken_plugins(host)}")
    where = f"{name}: "
    if settings.lstrip().startswith("{"):
        return config_from_dict(kind, _json_object(settings, where), where)
    values: dict[str, object] = {}
    for part in filter(None, settings.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{where}expected KEY=VALUE, got {part!r}")
        if key.strip() in values:
            raise ConfigError(f"{where}{key.strip()} is set twice (+ joins the elements of a list)")
        values[key.strip()] = _text_value(kind, key.strip(), value.strip())
    unknown = [key for key in values if key not in {f.name for f in dataclasses.fields(kind)}]
    if unknown:
        known_keys = [f.name for f in dataclasses.fields(kind)]
        raise ConfigError(
            f"{where}unknown settings:\n"
            + listed(key + close for key, close in hinted(unknown, known_keys))
        )
    return config_from_values(kind, values, where, strict=False)


def _text_value(kind: type[PeftConfig], key: str, value: str) -> object:
    """Split `a+b` into a list where the setting can be one."""
    annotation = str(next((f.type for f in dataclasses.fields(kind) if f.name == key), ""))
    if "Sequence" not in annotation or value == "all-linear":
        return {"true": True, "false": False}.get(value.lower(), value)
    return value.split("+")


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}invalid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}expected a JSON object, got {type(values).__name__}")
    return values
