"""The labels of data, as classes of a model.

Files and models often spell the same classes in different ways: 1, LABEL_1, positive, POSITIVE.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from tinygrad_peft.errors import DataError, hinted, listed, shortened

__all__ = ["class_names", "class_numbers", "log_readings", "quoted"]

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"(?:LABEL_)?(\d{1,9})(?:\.0+)?", re.ASCII)  # pandas writes 1.0 beside blanks
_SHOWN = 10


def class_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return a model's names of its classes: LABEL_0, LABEL_1, ... if it has none."""
    return tuple(names) or tuple(f"LABEL_{number}" for number in range(count))


def class_numbers(labels: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Return the class of each label, in a model whose classes have these names.

    The labels are the names; or else the names with other capitals; or else i and LABEL_i, which
    stand for class i. Where the names have numbers of their own, as in "1 star", a number stands
    for the name with it.

    Raises DataError that lists the labels that are not names, if no reading fits all.
    """
    given = sorted(set(labels))
    for key_of_label, keys in _readings(names):
        uses = Counter(keys)
        classes = {key: place for place, key in enumerate(keys) if uses[key] == 1}
        wanted = {label: key_of_label(label) for label in given}
        if all(key is not None and key in classes for key in wanted.values()):
            return {label: classes[key] for label, key in wanted.items()}
    raise DataError(_unknown(Counter(labels), names))


def _readings(
    names: Sequence[str],
) -> list[tuple[Callable[[str], Hashable], Sequence[Hashable]]]:
    """Return the ways to read a label: the key of a label, and the keys of the classes."""
    own = [_digits(name) for name in names]
    numbers = range(len(names)) if own == [None] * len(names) else own
    return [(str, names), (_folded, [*map(_folded, names)]), (_number, numbers)]


def _folded(label: str) -> str:
    return label.strip().casefold()


def _number(label: str) -> int | None:
    found = _NUMBER.fullmatch(label.strip().upper())
    return int(found[1]) if found else None


def _digits(name: str) -> int | None:
    found = re.search(r"\d{1,9}", name, re.ASCII)
    return int(found[0]) if found else None


def log_readings(found: Mapping[str, int], names: Sequence[str], where: str) -> None:
    """Log after `where` the labels that are read as classes of other names."""
    others = [
        f"{label!r} as {names[number]!r}"
        for label, number in found.items()
        if names[number] not in (label, f"LABEL_{label}")
    ]
    if others:
        logger.warning("%slabels are read: %s", where, _first(others))


def _unknown(counts: Counter[str], names: Sequence[str]) -> str:
    unknown, total = sorted(counts.keys() - set(names)), counts.total()
    problems = [
        f"{name!r:.100} in {counts[name]} of {total} examples{close}"
        for name, close in hinted(unknown, names, 1)
    ]
    return f"unknown labels (expected one of {quoted(names)}):\n{listed(problems)}"


def quoted(names: Sequence[str]) -> str:
    """Return names in quotes, the first of many."""
    return _first([repr(name) for name in names]) or "no label"


def _first(texts: Sequence[str]) -> str:
    more = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return ", ".join([*map(shortened, texts[:_SHOWN]), *more])
