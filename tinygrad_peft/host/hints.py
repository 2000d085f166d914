"""Type annotations, compared at run time as far as possible.

mypy checks plugins against the hooks' declarations; this checks plugins that nobody ran mypy on.
"""

import types
import typing
from collections.abc import Callable, Mapping, Sequence

__all__ = ["is_narrower", "is_of", "resolved_hints", "shown"]


def resolved_hints(function: Callable[..., object]) -> Mapping[str, object]:
    """Return the annotations of a function; empty if a name in them exists for mypy only."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        return {}


def is_of(value: object, hint: object) -> bool:
    """Check a value against an annotation; a `str` does not count as a sequence of `str`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is type:
        return isinstance(value, type) and is_narrower(value, arguments[0])
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return (
            isinstance(value, origin)
            and not isinstance(value, str | bytes)
            and all(is_of(element, arguments[0]) for element in value)
        )
    kinds = tuple(_plain(each) for each in _members(hint))
    return not all(isinstance(kind, type) for kind in kinds) or any(
        isinstance(kind, type) and isinstance(value, kind) for kind in kinds
    )


def is_narrower(hint: object, general: object) -> bool:
    """Check that all values of `hint` are values of `general`; True if this is unknown."""
    return all(any(_is_part(each, of) for of in _members(general)) for each in _members(hint))


def shown(hint: object) -> str:
    """Return an annotation as text, with the classes' bare names."""
    if hint is types.NoneType:
        return "None"
    if len(_members(hint)) > 1:
        return " or ".join(map(shown, _members(hint)))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(map(shown, arguments))}]"
    return hint.__name__ if isinstance(hint, type) else repr(hint)


def _members(hint: object) -> tuple[object, ...]:
    """Return the members of a union; anything else is its own only member."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _plain(hint: object) -> object:
    return typing.get_origin(hint) or hint


def _is_part(hint: object, general: object) -> bool:
    kind, of = _plain(hint), _plain(general)
    if not isinstance(kind, type) or not isinstance(of, type):
        return True
    try:
        if not issubclass(kind, of):
            return False
    except TypeError:  # a protocol with attributes
        return True
    inner = zip(typing.get_args(hint), typing.get_args(general), strict=False)
    return all(is_narrower(a, b) for a, b in inner)
