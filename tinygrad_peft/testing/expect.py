"""Comparisons whose messages say what was promised, where it broke, what came and what should."""

from dataclasses import dataclass

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import listed
from tinygrad_peft.nn import Module

__all__ = ["Snapshot", "expect", "expect_close", "expect_same"]


def expect(holds: bool, message: str) -> None:  # noqa: FBT001 - the condition is what it is about
    """Raise AssertionError with `message` unless it holds."""
    if not holds:
        raise AssertionError(message)


def expect_same(got: Array, expected: Array, what: str) -> None:
    """Raise AssertionError unless two arrays are equal in dtype, shape and every bit of value."""
    _expect_alike(got, expected, what)
    _expect_within(got, expected, what, 0.0)


def expect_close(got: Array, expected: Array, what: str, *, tolerance: float = 1e-6) -> None:
    """Raise AssertionError where they differ by more than `tolerance` of the largest value."""
    _expect_alike(got, expected, what)
    largest = float(np.abs(expected).max(initial=0.0))
    _expect_within(got, expected, what, tolerance * max(largest, 1e-3))


def _expect_alike(got: Array, expected: Array, what: str) -> None:
    expect(
        (got.dtype, got.shape) == (expected.dtype, expected.shape),
        f"{what}: expected {expected.dtype} {expected.shape}, got {got.dtype} {got.shape}",
    )


def _expect_within(got: Array, expected: Array, what: str, most: float) -> None:
    apart = np.abs(np.subtract(got, expected, dtype=np.float64))
    wrong = ~(apart <= most)  # where a NaN is, too
    if not wrong.any():
        return
    place = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
    limit = f"differ by more than {most:.3g}" if most else "are not equal"
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.size} values {limit}; "
        f"the first is at {place}: expected {expected[place]!r}, got {got[place]!r}"
    )


@dataclass(frozen=True)
class Snapshot:
    """A model as it is: its modules and weights, their values, and which of them are trained.

    modules: the identity of each module by its path.
    weights: for each weight its identity, whether it is trained, and a copy of its values.
    """

    modules: dict[str, int]
    weights: dict[str, tuple[int, bool, Array]]

    @classmethod
    def of(cls, model: Module) -> "Snapshot":
        """The model as it is now."""
        return cls(
            {path: id(module) for path, module in model.named_modules()},
            {name: (id(p), p.requires_grad, p.data.copy()) for name, p in model.named_parameters()},
        )

    def expect_unchanged(self, model: Module, what: str) -> None:
        """Raise AssertionError, with all differences, unless the model is what it was."""
        now = Snapshot.of(model)
        paths = dict.fromkeys((*self.modules, *now.modules))
        changes = [
            f"{path or 'the model'}: another module, or none"
            for path in paths
            if self.modules.get(path) != now.modules.get(path)
        ]
        for name in dict.fromkeys((*self.weights, *now.weights)):
            changes += _differences(name, self.weights.get(name), now.weights.get(name))
        expect(not changes, f"{what} is not what it was:\n{listed(changes)}")


def _differences(
    name: str, before: tuple[int, bool, Array] | None, after: tuple[int, bool, Array] | None
) -> list[str]:
    """Describe the changes of one weight."""
    if before is None or after is None:
        return [f"{name} is {'new' if before is None else 'gone'}"]
    changes = []
    if before[0] != after[0]:
        changes.append(f"{name} is another parameter")
    if before[1] != after[1]:
        changes.append(f"{name}: requires_grad was {before[1]} and is {after[1]}")
    if before[2].tobytes() != after[2].tobytes():
        changes.append(f"{name} has other values")
    return changes
