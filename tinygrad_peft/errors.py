"""Every exception that the library raises on purpose.

TinygradPeftError
├── GraphError         backward has nothing to do, or was asked for twice
├── ShapeError         arrays whose shapes do not fit          (also a ValueError)
├── ConfigError        a setting that cannot be                (also a ValueError)
├── CheckpointError    a file that is not what it should be    (also a ValueError)
├── DataError          training data that cannot be used       (also a ValueError)
├── FetchError         a download that failed
│   └── NetworkError   what is fetched from cannot be reached
├── MissingExtraError  an optional dependency is not installed (also an ImportError)
├── TokenError         token ids or labels outside the model   (also a ValueError)
├── TrainingError      training cannot start or go on
└── PeftError          applying, merging or saving a method failed
    ├── PluginError    a plugin that cannot be loaded or contradicts another
    └── TargetError    targets that the model does not have    (also a LookupError)

Two are no errors but UserWarnings, for what is done as asked: PrecisionWarning, at a price that it
names, and BaseModelWarning, for an adapter of a model of another name.
"""

import difflib
import heapq
import re
from collections.abc import Iterable, Sequence

__all__ = [
    "LISTED",
    "BaseModelWarning",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FetchError",
    "GraphError",
    "MissingExtraError",
    "NetworkError",
    "PeftError",
    "PluginError",
    "PrecisionWarning",
    "ShapeError",
    "TargetError",
    "TinygradPeftError",
    "TokenError",
    "TrainingError",
    "explained",
    "listed",
    "nearest",
    "shortened",
    "told",
]


class TinygradPeftError(Exception):
    """The root of the tree."""


class GraphError(TinygradPeftError):
    """Backward has nothing to differentiate, or the graph was already walked."""


class ShapeError(TinygradPeftError, ValueError):
    """Arrays whose shapes do not fit."""


class ConfigError(TinygradPeftError, ValueError):
    """A setting that cannot be."""


class CheckpointError(TinygradPeftError, ValueError):
    """A model or adapter file that is missing, broken, or of another model."""


class DataError(TinygradPeftError, ValueError):
    """Training or evaluation data that cannot be used."""


class FetchError(TinygradPeftError):
    """A download that failed, or gave something else than expected."""


class NetworkError(FetchError):
    """A download that failed since what it comes from cannot be reached, as without a network."""


class MissingExtraError(TinygradPeftError, ImportError):
    """An optional dependency that is not installed; the message names the extra that has it."""


class TokenError(TinygradPeftError, ValueError):
    """Token ids, labels or lengths that the model does not have."""


class TrainingError(TinygradPeftError):
    """Training cannot start, or cannot go on."""


class PeftError(TinygradPeftError):
    """A method cannot be applied, merged, removed or saved."""


class PluginError(PeftError):
    """A plugin cannot be loaded, or contradicts another one."""


class TargetError(PeftError, LookupError):
    """A target that the model does not have."""


class PrecisionWarning(UserWarning):
    """Rounding has cost much of what was learnt."""


class BaseModelWarning(UserWarning):
    """An adapter fits a model of another name than the one that it was trained on."""


LISTED = 20  # problems in one message
LONGEST_LINE = 300  # of a message: a broken file may hold names of any length
_COMPARED = 50  # names, since each comparison takes up to a millisecond


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; did you mean 'a' or 'b'?` for the known names nearest to `name`, or nothing."""
    names = [other for other in known if len(other) <= LONGEST_LINE]
    if len(name) > LONGEST_LINE:
        return ""
    if len(names) > _COMPARED:
        parts = _parts(name)
        names = heapq.nlargest(_COMPARED, names, key=lambda other: len(parts & _parts(other)))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _parts(name: str) -> set[str]:
    return set(re.split(r"[._]", name))


def listed(problems: Iterable[str], most: int = LISTED) -> str:
    """The problems one a line, cut short; how many more there are, past the first `most`."""
    lines = list(problems)
    shown = [f"  - {shortened(line)}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"  ... and {len(lines) - most} more")
    return "\n".join(shown)


def told(problems: Sequence[str]) -> str:
    """What comes after a colon: one problem in the same line, or several below it."""
    return f" {shortened(problems[0])}" if len(problems) == 1 else f"\n{listed(problems)}"


def explained(error: Exception) -> str:
    """Return an error's message, and below it the notes that were added on its way."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def shortened(text: str, most: int = LONGEST_LINE) -> str:
    """Text of at most `most` characters; what is left out is told."""
    rest = len(text) - most
    return text if rest <= 0 else f"{text[:most]}... and {rest} characters more"
