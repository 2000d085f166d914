"""The notes in recipe.json, beside its steps: their types, checked when the file is read."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tinygrad_peft.nn import TransformerConfig

__all__ = ["note_problems"]


class _Targets(msgspec.Struct):
    """A step's targets as given, and the names that they were resolved to."""

    given: str | list[str] | None
    names: list[str]
    excluded: str | list[str] | None = None


_NOTES: Mapping[str, Any] = {
    "targets": dict[str, _Targets],
    "plugins": dict[str, str],
    "base": TransformerConfig,
}


def note_problems(recipe: Mapping[str, object]) -> Iterator[str]:
    """Describe each note that is not of its type. An absent or an empty one says nothing."""
    for name, kind in _NOTES.items():
        if recipe.get(name) in (None, {}):
            continue
        try:
            msgspec.convert(recipe[name], kind)
        except msgspec.ValidationError as error:
            yield f"{name}: {error}"
