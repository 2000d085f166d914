"""One value beside another: the first difference, in one line."""

import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinygrad_peft.reference._basics import Array

__all__ = [
    "Different",
    "Mistake",
    "call",
    "equal",
    "hold",
    "method_of",
    "shapes",
    "taken_from",
    "wanted_by",
]

# A sentence that names a mistake, and the values that it would give.
Mistake: TypeAlias = tuple[str, Array]
# Folders whose lines in a traceback do not belong to the solution: the reference, and NumPy.
FOREIGN = (str(Path(__file__).parents[1]), str(Path(np.__file__).parent))
TOLERANCE = 1e-5  # of the largest value: a solution in float32 passes


class Different(Exception):  # noqa: N818 - a finding about a solution, not an error of this program
    """The first difference between a solution and the reference: one line."""


def hold(where: str, got: object, expected: Array, mistakes: Iterable[Mistake] = ()) -> None:
    """Raise Different unless `got` has the shape and the values of `expected`."""
    values = _numbers(where, got, expected.shape)
    if equal(values, expected):
        return
    named = [text for text, wrong in mistakes if equal(values, wrong)]
    hint = f"; {named[0]}" if named else ""
    if values.shape != expected.shape:
        raise Different(f"{where}: expected shape {expected.shape}, got {values.shape}{hint}")
    apart = ~_near(values, expected)
    place = tuple(int(i) for i in np.argwhere(apart)[0])
    index = f"[{', '.join(map(str, place))}]" if place else ""
    how_many = f" ({apart.sum()} of {apart.size} values differ)" if place else ""
    raise Different(
        f"{where}{index}: expected {expected[place]:.6g}, got {values[place]:.6g}{how_many}{hint}"
    )


def equal(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Tell if shapes are equal and, to rounding, values."""
    return a.shape == b.shape and bool(_near(a, b).all())


def _near(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):  # inf - inf: not near
        near: npt.NDArray[np.bool_] = np.abs(a - b) <= TOLERANCE * np.abs(b).max(initial=1e-12)
    return near


def _numbers(where: str, got: object, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Turn what a solution returned into an array."""
    wanted = f"an array of shape {shape}" if shape else "a number"
    if got is None:
        raise Different(f"{where}: expected {wanted}, got None: nothing is returned")
    if isinstance(got, tuple | list | dict):
        raise Different(f"{where}: expected {wanted}, got a {type(got).__name__} of {len(got)}")
    values = np.asarray(got)
    if values.dtype.kind not in "fiu":
        raise Different(f"{where}: expected {wanted}, got {_kind(got)}")
    return values


def _kind(got: object) -> str:
    return str(got.dtype) if isinstance(got, np.ndarray) else type(got).__name__


def call(where: str, function: Callable[..., Any], *arguments: object, **named: object) -> Any:  # noqa: ANN401 - a solution returns what it likes
    """Call a function of a solution with copies of the arrays, and return what it returns.

    Raises:
        Different: it raises, with the line of the solution that did.
    """
    given = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    try:
        return function(*given, **named)
    except Exception as error:
        told = f"raises {type(error).__name__}: {error}".removesuffix(": ")
        raise Different(f"{where}: {' '.join(told.split())}{_line(error)}") from error


def _line(error: Exception) -> str:
    """Name the last line of a solution on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*FOREIGN, "<frozen"))]
    return f" (line {own[-1].lineno})" if own else ""


def method_of(where: str, owner: object, *names: str) -> Callable[..., Any]:
    """Return an object's method, under the first of these names that is there.

    Raises:
        Different: there is no such method.
    """
    found = taken_from(owner, *names)
    if found is None:
        raise Different(f"{where}: expected a method {' or '.join(names)}, got none")
    return found


def taken_from(owner: object | ModuleType, *names: str) -> Callable[..., Any] | None:
    """Return the first of these names that can be called, or None."""
    found = (getattr(owner, name, None) for name in names)
    return next((f for f in found if callable(f)), None)


def wanted_by(function: Callable[..., object]) -> int:
    """Count the positional arguments without a default; at least 1."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))


def shapes(**arrays: Array) -> str:
    """Write arrays as x (2, 3), W (4, 3)."""
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
