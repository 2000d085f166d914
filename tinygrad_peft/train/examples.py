"""Training examples, read from a file.

A classification file has `text` and `label`; a causal-LM file has `text`, or `prompt` and
`completion`. Other fields are not read, and their names are logged.
"""

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, overload

import msgspec

from tinygrad_peft.errors import DataError, shortened
from tinygrad_peft.train.data_files import Fields, Problems, RowError, read_rows
from tinygrad_peft.train.label_matching import quoted

__all__ = [
    "CausalExample",
    "ClassificationExample",
    "CompletionExample",
    "Example",
    "Task",
    "TextExample",
    "label_names",
    "read_examples",
    "task_of_file",
]

Task: TypeAlias = Literal["causal-lm", "sequence-classification"]

logger = logging.getLogger(__name__)

_INDEX = re.compile(r"Unnamed: \d+")  # as pandas names the index that it reads back


@dataclass(frozen=True, slots=True)
class ClassificationExample:
    """A text and the name of its class."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text whose tokens are all learned."""

    text: str


@dataclass(frozen=True, slots=True)
class CompletionExample:
    """A prompt, which may be empty, and the completion that is learned after it."""

    prompt: str
    completion: str


CausalExample: TypeAlias = TextExample | CompletionExample
Example: TypeAlias = ClassificationExample | CausalExample


def label_names(examples: Sequence[ClassificationExample]) -> tuple[str, ...]:
    """List the distinct labels: in numerical order if all are whole numbers, else by text."""
    names = {example.label for example in examples}
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


# ---------- reading ----------


def task_of_file(path: Path) -> Task:
    """Tell a data file's task by its first row: with a label it is classification.

    Raises DataError for a file that cannot be read.
    """
    first = next(read_rows(path, Problems("")), None)
    labelled = first is not None and "label" in first[1]
    return "sequence-classification" if labelled else "causal-lm"


class _ClassificationRow(msgspec.Struct, frozen=True):
    text: str
    label: str | int | bool

    def example(self) -> ClassificationExample:
        return ClassificationExample(self.text, _label_text(self.label))


class _TextRow(msgspec.Struct, frozen=True):
    text: str

    def example(self) -> TextExample:
        return TextExample(self.text)


class _CompletionRow(msgspec.Struct, frozen=True):
    prompt: str
    completion: str

    def example(self) -> CompletionExample:
        return CompletionExample(self.prompt, self.completion)


_RowType: TypeAlias = type[_ClassificationRow] | type[_TextRow] | type[_CompletionRow]
_ROW_TYPES: dict[Task, tuple[_RowType, ...]] = {
    "causal-lm": (_TextRow, _CompletionRow),
    "sequence-classification": (_ClassificationRow,),
}


@overload
def read_examples(
    path: Path, task: Literal["sequence-classification"]
) -> list[ClassificationExample]: ...
@overload
def read_examples(path: Path, task: Literal["causal-lm"]) -> list[CausalExample]: ...
@overload
def read_examples(path: Path, task: Task) -> Sequence[Example]: ...
def read_examples(path: Path, task: Task) -> Sequence[Example]:
    """Read the examples of a .jsonl, .json-lines or .csv file, in its order.

    Labels become text as JSON spells them: 1 is "1", true is "true". Raises DataError for a file
    that cannot be read or is empty; and, all at once, for the lines that are not examples of
    `task`. Logs the names of fields that are not read.
    """
    problems = Problems(f"{path} cannot be used for {task}")
    examples: list[Example] = []
    unread: dict[str, None] = {}
    first: tuple[int, _RowType] | None = None
    for line, fields in read_rows(path, problems):
        try:
            row_type = _row_type(fields, task)
            first = first or (line, row_type)
            _require_same_kind(row_type, first)
            examples.append(_example(fields, row_type))
            unread |= dict.fromkeys(name for name in fields if name not in _names(row_type))
        except RowError as error:
            problems.add(line, str(error))
    problems.raise_if_any()
    if not examples:
        raise DataError(f"{path} holds no examples: expected at least one")
    if others := [name for name in unread if not _INDEX.fullmatch(name)]:
        logger.warning("%s: fields that are not read: %s", path, quoted(others))
    return examples


def _row_type(fields: Collection[str], task: Task) -> _RowType:
    candidates = _ROW_TYPES[task]
    complete = [kind for kind in candidates if set(_names(kind)) <= set(fields)]
    if len(complete) == 1:
        return complete[0]
    wanted = ", or ".join(map(_both, candidates))
    got = shortened(", ".join(map(repr, fields))) or "no fields"
    raise RowError(f"expected {wanted}, got {got}")


def _require_same_kind(row_type: _RowType, first: tuple[int, _RowType]) -> None:
    line, expected = first
    if row_type is not expected:
        raise RowError(f"expected {_both(expected)} as in line {line}, got {_both(row_type)}")


def _example(fields: Fields, row_type: _RowType) -> Example:
    for name in _names(row_type):
        value = fields[name]
        if isinstance(value, str) and not value.strip() and name != "prompt":
            raise RowError(f"{name!r} is empty")
    whole = {name: _whole(value) for name, value in fields.items()}
    try:
        return msgspec.convert(whole, row_type).example()
    except msgspec.ValidationError as error:
        raise RowError(str(error)) from None


def _whole(value: object) -> object:
    """Turn 1.0 into 1: pandas writes whole numbers so in a column with blanks."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _label_text(label: str | int | bool) -> str:  # noqa: FBT001 - what JSON has
    return str(label).lower() if isinstance(label, bool) else str(label).strip()


def _names(row_type: _RowType) -> tuple[str, ...]:
    return row_type.__struct_fields__


def _both(row_type: _RowType) -> str:
    return " and ".join(map(repr, _names(row_type)))
