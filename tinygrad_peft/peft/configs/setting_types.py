"""The types of a method's settings, checked when a config is made."""

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Hashable, Iterable, Mapping
from typing import Literal

import msgspec

from tinygrad_peft.errors import ConfigError, listed, nearest, shortened

__all__ = ["convert_setting", "setting_types", "wrong_choices", "wrong_types"]

_PYTHONS = {"array": "list", "object": "dict", "null": "None"}  # JSON's names, and Python's


def setting_types(kind: type) -> Mapping[str, object]:
    """Return the type of each setting of a config class.

    Raises ConfigError with every setting of a type that JSON cannot hold.
    """
    return _types(kind)


@functools.cache
def _types(kind: Hashable) -> Mapping[str, object]:  # mypy: a class is not Hashable
    assert isinstance(kind, type)
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    if any(isinstance(hint, str) for hint in types.values()):
        hints = typing.get_type_hints(kind)
        types = {name: hints[name] for name in types}
    problems = [f"{name}: JSON cannot hold {hint}" for name, hint in types.items() if _alien(hint)]
    if problems:
        raise ConfigError(f"invalid class {kind.__name__}:\n{listed(problems)}")
    return types


def convert_setting(value: object, hint: object, *, strict: bool) -> object:
    """Convert a JSON value to the type of its setting; return it unchanged if it does not fit."""
    try:
        return msgspec.convert(value, hint, strict=strict, str_keys=True)
    except msgspec.ValidationError:
        return value


def wrong_types(config: object) -> list[str]:
    """List the settings with values of the wrong type or numbers that are not finite."""
    found = []
    for name, hint in setting_types(type(config)).items():
        value = getattr(config, name)
        found += [
            *([] if _chosen(value, hint) is not None else _mismatch(name, value, hint)),
            *_not_finite(name, value),
        ]
    return found


def wrong_choices(config: object) -> list[str]:
    """List the texts that their settings do not allow, with the nearest allowed ones."""
    found = []
    for name, hint in setting_types(type(config)).items():
        value = getattr(config, name)
        if (allowed := _chosen(value, hint)) is not None and value not in allowed:
            known = ", ".join(allowed)
            found.append(f"{name}: expected one of {known}, got {value!r}{nearest(value, allowed)}")
    return found


def _alien(hint: object) -> bool:
    try:
        msgspec.json.schema(hint)
    except TypeError:
        return True
    return False


def _mismatch(name: str, value: object, hint: object) -> list[str]:
    """Return `[name: expected int, got '4']`; empty if the value fits."""
    try:
        msgspec.convert(msgspec.to_builtins(value), hint, strict=True)
    except (msgspec.ValidationError, TypeError) as error:
        text = str(error).replace("`", "")
        match = re.fullmatch(r"Expected (.*?), got (.*?)(?: - at \$(.*))?", text)
        if match is None:
            return [f"{name}: {text}"]
        expected, got, place = match.groups()
        if place is None:
            got = shortened(repr(value), 100)
        kinds = " or ".join(_PYTHONS.get(kind, kind) for kind in expected.split(" | "))
        return [f"{name}{place or ''}: expected {kinds}, got {got}"]
    return []


def _not_finite(name: str, value: object) -> Iterable[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{name}: expected a finite number, got {value}"
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _not_finite(f"{name}[{key!r}]", each)
    elif isinstance(value, tuple):
        for place, each in enumerate(value):
            yield from _not_finite(f"{name}[{place}]", each)


def _chosen(value: object, hint: object) -> tuple[str, ...] | None:
    """Return the texts that a setting allows, if its value is a text; None if it allows any."""
    if not isinstance(value, str):
        return None
    return _choices(hint) or None


def _choices(hint: object) -> tuple[str, ...]:
    """Return the texts that a type allows; empty if it allows any text."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return tuple(a for a in arguments if isinstance(a, str))
    return () if str in arguments else tuple(c for a in arguments for c in _choices(a))
