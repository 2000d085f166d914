"""Problems, gathered so that all are told at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tinygrad_peft.errors import TinygradPeftError, told

__all__ = ["Problem", "gathered", "raise_problems"]

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A problem as text, and the kind of error that it is."""

    kind: type[TinygradPeftError]
    text: str


def gathered(problems: list[Problem], ask: Callable[[], T]) -> T | None:
    """Return what `ask` gives; None where it raises an error of the tree, which is added."""
    try:
        return ask()
    except TinygradPeftError as error:
        problems.append(Problem(type(error), str(error)))
        return None


def raise_problems(directory: Path, problems: Sequence[Problem]) -> None:
    """Raise all problems of a folder as one error, of the first one's kind; nothing without any.

    One that names the folder itself stands alone.
    """
    texts = [problem.text for problem in problems]
    if len(texts) == 1 and texts[0].startswith(str(directory)):
        raise problems[0].kind(texts[0])
    if texts:
        raise problems[0].kind(f"{directory} cannot be loaded:{told(texts)}")
