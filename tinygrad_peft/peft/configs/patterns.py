"""Regular expressions in settings, which anybody's file may hold: each match has a time limit.

They mean what Python's re, and so Hugging Face PEFT, means by them: one that re does not compile is
invalid. But re cannot be stopped, and an expression of ten characters may keep it busy for years.
The regex package has the same syntax and a time limit. What only it would understand is refused.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import regex

from tinygrad_peft.errors import ConfigError, shortened
from tinygrad_peft.models import equal_names

__all__ = ["broken_expressions", "full_match", "matches", "named_by"]

SECONDS = 0.05  # for one match, which usually takes some millionths of a second
LONGEST = 50_000  # characters
MOST = 2_000  # expressions of one setting
# re reads these braces and brackets as plain characters, regex as fuzzy matching and classes.
_ONLY_REGEX = re.compile(r"(?<!\\)\{(?!\d*,?\d*\})|\[[\[:]")


def full_match(expression: str, text: str) -> "regex.Match[str] | None":
    """Match the whole of a text, as `re.fullmatch` does.

    Raises ConfigError if that takes longer than 0.05 seconds of computing.
    """
    try:
        return _compiled(expression).fullmatch(text, timeout=SECONDS)
    except TimeoutError:
        raise ConfigError(
            f"the regular expression {shortened(expression, 100)!r} takes more than {SECONDS} s "
            f"to match {shortened(text, 100)!r}: expected one without repeats inside of repeats"
        ) from None


def matches(path: str, pattern: str | Sequence[str]) -> bool:
    """Return True if a regular expression matches the whole path, or a list names it.

    With the family's prefix or without, it is the same path. Raises ConfigError for an expression
    that takes too long.
    """
    names = equal_names(path)
    if isinstance(pattern, str):
        return any(full_match(pattern, each) for each in names)
    return any(each == name or each.endswith(f".{name}") for each in names for name in pattern)


def named_by(entries: Iterable[str], paths: Iterable[str]) -> dict[str, list[str]]:
    """Map each name to the paths that equal it or end with a dot and it.

    Takes a time in proportion to the sum of both lengths: a file may hold many of each.
    """
    found: dict[str, list[str]] = {entry: [] for entry in entries}
    for path in paths:
        ends = {end for name in equal_names(path) for end in _ends(name)}
        for end in ends & found.keys():
            found[end].append(path)
    return found


def _ends(path: str) -> Iterator[str]:
    """Yield the path, and each of its ends after a dot."""
    while path:
        yield path
        path = path.partition(".")[2]


def broken_expressions(name: str, values: Iterable[object], *, is_part: bool = False) -> list[str]:
    """List the texts among a setting's values that are not valid regular expressions.

    `is_part`: they are used within another expression, which excludes flags for the whole.
    """
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) > MOST:
        return [f"{name}: expected at most {MOST:,} regular expressions, got {len(texts):,}"]
    shown = ((shortened(repr(text), 100), _error(text, is_part=is_part)) for text in texts)
    return [f"{name}: invalid regular expression {text}: {error}" for text, error in shown if error]


def _error(text: str, *, is_part: bool) -> str:
    """Return why a text is not a regular expression; "" if it is one."""
    if len(text) > LONGEST:
        return f"expected at most {LONGEST:,} characters, got {len(text):,}"
    if found := _ONLY_REGEX.search(text):
        return f"expected {found[0][0]!r} at position {found.start()} to be escaped"
    try:
        re.compile(text)
        re.compile(f"({text})" if is_part else "")
        _compiled(text)
    except (re.error, regex.error, OverflowError, RecursionError, MemoryError) as error:
        return str(error)
    return ""


@lru_cache(maxsize=2 * MOST)
def _compiled(text: str) -> "regex.Pattern[str]":
    return regex.compile(text)
