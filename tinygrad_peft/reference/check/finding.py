"""The arrays of a solution, whatever it calls them: by the course's name, or else by shape."""

from collections.abc import Iterator, Mapping
from numbers import Real
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tinygrad_peft.reference._basics import Array
from tinygrad_peft.reference.check.comparing import Different

__all__ = ["Found", "arrays_of", "fill", "gradient", "parameter", "scaling_of", "values_of"]

DEPTH = 5  # of objects within objects


class Found(NamedTuple):
    """An array of a solution, and where it is: `lora.A`."""

    path: str
    array: npt.NDArray[Any]


def values_of(owner: object) -> Iterator[tuple[str, object]]:
    """Yield (path, value) of all attributes and entries of an object, and of objects within."""
    yield from _within(owner, "", DEPTH)


def _within(owner: object, path: str, depth: int) -> Iterator[tuple[str, object]]:
    for name, value in _entries(owner):
        here = f"{path}.{name}".lstrip(".")
        yield here, value
        if depth and not isinstance(value, np.ndarray):
            yield from _within(value, here, depth - 1)


def _entries(owner: object) -> list[tuple[str, object]]:
    if isinstance(owner, Mapping):
        return [(str(key), value) for key, value in owner.items()]
    if isinstance(owner, list | tuple):
        return [(str(i), value) for i, value in enumerate(owner)]
    if isinstance(owner, type | ModuleType | FunctionType | MethodType):
        return []
    return list(getattr(owner, "__dict__", {}).items())


def arrays_of(owner: object) -> list[Found]:
    """Return each array once, without caches and gradients."""
    found: dict[int, Found] = {}
    for path, value in values_of(owner):
        if isinstance(value, np.ndarray) and not _is_passing(path):
            found.setdefault(id(value), Found(path, value))
    return list(found.values())


def _is_passing(path: str) -> bool:
    return any(word in path.casefold() for word in ("cache", "grad"))


def _last(path: str) -> str:
    return path.rpartition(".")[2].casefold()


def parameter(
    where: str, owner: object, name: str, meaning: str, shape: tuple[int, ...], *others: str
) -> Found:
    """Find the array under that name, or one of the others, or else the only one of that shape.

    meaning: the shape in words, "(rank, in_features)".

    Raises:
        Different: it is not there, or has another shape.
    """
    names = {spelling.casefold() for spelling in (name, *others)}
    found = arrays_of(owner)
    called = [f for f in found if _last(f.path).removeprefix("lora_") in names]
    fitting = [f for f in called or found if f.array.shape == shape]
    if called and not fitting:
        path, array = called[0]
        raise Different(f"{where}.{path}: expected shape {meaning} = {shape}, got {array.shape}")
    if not called and len(fitting) != 1:
        has = ", ".join(f"{f.path} {f.array.shape}" for f in found) or "no arrays"
        raise Different(f"{where}: expected an array {name} {meaning} = {shape}, found {has}")
    return fitting[0]


def gradient(owner: object, name: str) -> tuple[str, object] | None:
    """Find (path, value) of `name`_grad, grad_`name` or d`name`, or return None."""
    wanted = {f"{name}_grad", f"grad_{name}", f"d{name}"}
    wanted = {spelling.casefold() for spelling in wanted}
    return next(((path, v) for path, v in values_of(owner) if _last(path) in wanted), None)


def fill(where: str, found: Found, value: Array) -> Array:
    """Put values into an array of a solution, and return them.

    Raises:
        Different: the array holds no floats, or cannot be written to.
    """
    path, array = found
    if array.dtype.kind != "f":
        raise Different(f"{where}.{path}: expected floats, got {array.dtype}")
    if not array.flags.writeable:
        raise Different(f"{where}.{path}: expected an array to train, got one that is read-only")
    array[...] = value
    return value


def scaling_of(owner: object, rank: int, alpha: float = 16.0) -> float:
    """Read an object's `scaling`, or its alpha / rank; else return the course's."""
    numbers = {
        _last(path): float(value)
        for path, value in values_of(owner)
        if isinstance(value, Real) and not isinstance(value, bool)
    }
    if "scaling" in numbers:
        return numbers["scaling"]
    return numbers.get("alpha", numbers.get("lora_alpha", alpha)) / rank
