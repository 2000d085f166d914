"""Every exception that the library raises on purpose.

TinygradPeftError
├── GraphError         backward has nothing to differentiate, or ran before
├── ShapeError         arrays whose shapes do not fit          (also a ValueError)
├── ConfigError        an invalid setting                      (also a ValueError)
├── CheckpointError    a file that is missing, broken or wrong (also a ValueError)
├── DataError          training data that cannot be used       (also a ValueError)
├── FetchError         a download that failed
│   └── NetworkError   the source of a download cannot be reached
├── MissingExtraError  an optional dependency is not installed (also an ImportError)
├── TokenError         token ids or labels outside the model   (also a ValueError)
├── TrainingError      training cannot start or go on
├── NumericalError     a result is NaN or infinite
└── PeftError          applying, merging or saving a method failed
    ├── PluginError    a plugin that cannot be loaded or contradicts another
    └── TargetError    targets that the model does not have    (also a LookupError)

Four are UserWarnings, for work that was done as asked: PrecisionWarning, when rounding cost
accuracy; BaseModelWarning, for an adapter that was trained on a model of another name;
AdapterWarning, for an adapter's files with something in them that may not be expected; and
NonFiniteWarning, for weights that are NaN or infinite and were allowed.
"""

import difflib
import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

__all__ = [
    "LISTED",
    "AdapterWarning",
    "BaseModelWarning",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FetchError",
    "GraphError",
    "MissingExtraError",
    "NetworkError",
    "NonFiniteWarning",
    "NumericalError",
    "PeftError",
    "PluginError",
    "PrecisionWarning",
    "ShapeError",
    "TargetError",
    "TinygradPeftError",
    "TokenError",
    "TrainingError",
    "explained",
    "failures",
    "hinted",
    "listed",
    "mistyped",
    "nearest",
    "printable",
    "shortened",
    "told",
]


class TinygradPeftError(Exception):
    """The root of the tree: its message is at most 8,000 printable characters long.

    A broken file may hold names of any length, and characters that a terminal would obey.
    """

    def __init__(self, *args: object) -> None:
        """Keep the arguments, with every text printable and cut short."""
        super().__init__(*(_legible(arg) if isinstance(arg, str) else arg for arg in args))


class GraphError(TinygradPeftError):
    """Backward has nothing to differentiate, or the graph was walked before."""


class ShapeError(TinygradPeftError, ValueError):
    """Arrays whose shapes do not fit."""


class ConfigError(TinygradPeftError, ValueError):
    """An invalid setting."""


class CheckpointError(TinygradPeftError, ValueError):
    """A model or adapter file that is missing, broken, or of another model."""


class DataError(TinygradPeftError, ValueError):
    """Training or evaluation data that cannot be used."""


class FetchError(TinygradPeftError):
    """A download that failed, or has unexpected content."""


class NetworkError(FetchError):
    """A download whose source cannot be reached, as without a network."""


class MissingExtraError(TinygradPeftError, ImportError):
    """An optional dependency that is not installed; the message names its extra."""


class TokenError(TinygradPeftError, ValueError):
    """Token ids, labels or lengths that the model does not have."""


class TrainingError(TinygradPeftError):
    """Training cannot start, or cannot go on."""


class NumericalError(TinygradPeftError):
    """A result that is NaN or infinite, so that nothing should be made of it."""


class PeftError(TinygradPeftError):
    """A method cannot be applied, merged, removed or saved."""


class PluginError(PeftError):
    """A plugin cannot be loaded, or contradicts another one."""


class TargetError(PeftError, LookupError):
    """A target that the model does not have."""


class PrecisionWarning(UserWarning):
    """Rounding has lost much of what was trained."""


class BaseModelWarning(UserWarning):
    """An adapter for a model of another name than the one it was trained on."""


class AdapterWarning(UserWarning):
    """An adapter's files hold something that was passed over, or used, without being expected."""


class NonFiniteWarning(UserWarning):
    """Weights with NaN or infinity that were loaded because the caller allows them."""


LISTED = 20  # problems in one message
LONGEST_LINE = 300  # of a message: a broken file may hold names of any length
LONGEST_MESSAGE = 8_000
_CONSIDERED = 10_000  # names; the most alike among them are compared
_COMPARED = 50  # names, since each comparison takes up to a millisecond


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Suggest the known names nearest to `name`: `; did you mean 'a' or 'b'?`, or nothing.

    Only the first 10,000 known names are considered. For many names, use `hinted`.
    """
    names = [other for other in islice(known, _CONSIDERED) if len(other) <= LONGEST_LINE]
    if len(name) > LONGEST_LINE:
        return ""
    if len(names) > _COMPARED:
        parts = _parts(name)
        names = heapq.nlargest(_COMPARED, names, key=lambda other: len(parts & _parts(other)))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _parts(name: str) -> set[str]:
    return set(re.split(r"[._]", name))


def hinted(names: Iterable[str], known: Iterable[str], count: int = 3) -> Iterator[tuple[str, str]]:
    """Yield each name with the text of `nearest`: the first 20 names, since no more are listed.

    >>> list(hinted(["q_porj"], ["q_proj"]))
    [('q_porj', "; did you mean 'q_proj'?")]
    """
    others = list(islice(known, _CONSIDERED))
    for place, name in enumerate(names):
        yield name, nearest(name, others, count) if place < LISTED else ""


def failures(conditions: Mapping[str, bool]) -> list[str]:
    """Return the messages whose condition is true: each condition says that something is wrong."""
    return [message for message, wrong in conditions.items() if wrong]


def mistyped(values: Mapping[str, object], kind: type[object], wanted: str) -> list[str]:
    """List the values that are not numbers of a kind, `Integral` or `Real`; a bool is not one.

    >>> from numbers import Integral
    >>> mistyped({"epochs": 2, "seed": 1.5}, Integral, "an integer")
    ['seed: expected an integer, got 1.5']
    """
    return [
        f"{name}: expected {wanted}, got {value!r:.80}"
        for name, value in values.items()
        if isinstance(value, bool) or not isinstance(value, kind)
    ]


def listed(problems: Iterable[str], most: int = LISTED) -> str:
    """List the problems one by one, each cut short; count those past the first `most`.

    The further lines of a problem stand below its first, indented.
    """
    lines = list(problems)
    shown = ["  - " + "\n    ".join(map(shortened, line.splitlines())) for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"  ... and {len(lines) - most} more")
    return "\n".join(shown)


def told(problems: Sequence[str]) -> str:
    """Format what follows a colon: one problem in the same line, or several below it."""
    if len(problems) == 1:
        return " " + "\n".join(map(shortened, problems[0].splitlines()))
    return f"\n{listed(problems)}"


def explained(error: Exception) -> str:
    """Return an error's message, and below it the notes that were added on its way."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def printable(text: str) -> str:
    """Escape control characters, which a name in a file may hold and a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _legible(text: str) -> str:
    """Return a text that can be shown whole: cut before and after escapes make it longer."""
    return shortened(printable(shortened(text, LONGEST_MESSAGE)), LONGEST_MESSAGE)


def shortened(text: str, most: int = LONGEST_LINE) -> str:
    """Cut text to `most` characters; say how many were cut."""
    rest = len(text) - most
    return text if rest <= 0 else f"{text[:most]}... and {rest} characters more"
