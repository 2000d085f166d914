"""Problems, gathered to raise them all at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tinygrad_peft.errors import TinygradPeftError, told

__all__ = ["Problem", "gathered", "raise_problems"]

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A problem: the class of its error, and its text."""

    kind: type[TinygradPeftError]
    text: str


def gathered(problems: list[Problem], ask: Callable[[], T]) -> T | None:
    """Return `ask()`; if it raises an error of this library, add that and return None."""
    try:
        return ask()
    except TinygradPeftError as error:
        problems.append(Problem(type(error), str(error)))
        return None


def raise_problems(directory: Path, problems: Sequence[Problem]) -> None:
    """Raise all problems of a folder, if any, as one error of the first one's class.

    A single problem that begins with the folder's path is raised unchanged.
    """
    texts = [problem.text for problem in problems]
    if len(texts) == 1 and texts[0].startswith(str(directory)):
        raise problems[0].kind(texts[0])
    if texts:
        raise problems[0].kind(f"{directory} cannot be loaded:{told(texts)}")
