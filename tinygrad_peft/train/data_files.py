"""Rows of a JSON lines or CSV file, with their line numbers and their problems."""

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from tinygrad_peft.errors import DataError, shortened
from tinygrad_peft.train.csv_rows import read_csv

__all__ = ["Fields", "Problems", "RowError", "read_rows"]

Fields: TypeAlias = dict[str, object]


class RowError(Exception):
    """The problem of one row, collected in Problems and shown with the others."""


class Problems:
    """The problems of a file, gathered so that one error can list them all."""

    SHOWN = 10

    def __init__(self, heading: str) -> None:
        self.heading = heading
        self._lines: dict[str, list[int]] = {}

    def add(self, line: int, message: str) -> None:
        """Note the problem of a line; lines with the same problem share one message."""
        self._lines.setdefault(message, []).append(line)

    def raise_if_any(self) -> None:
        """Raise one DataError with the first problems and the number of lines with one."""
        if self._lines:
            raise DataError("\n".join([self._title(), *self._details()]))

    def _title(self) -> str:
        count = sum(len(lines) for lines in self._lines.values())
        return f"{self.heading}: {count} bad {'line' if count == 1 else 'lines'}"

    def _details(self) -> Iterator[str]:
        messages = list(self._lines.items())
        for message, lines in messages[: self.SHOWN]:
            yield f"  {_line_numbers(lines)}: {message}"
        if len(messages) > self.SHOWN:
            yield f"  and {len(messages) - self.SHOWN} more kinds of problem"


def read_rows(path: Path, problems: Problems) -> Iterator[tuple[int, Fields]]:
    """Yield the line number and the fields of each good row; add bad rows to `problems`.

    Raises DataError for a file that cannot be read at all: missing, not UTF-8, unknown extension.
    """
    readers: dict[str, Callable[[str, Problems], Iterator[tuple[int, Fields]]]]
    readers = {".jsonl": _json_rows, ".json-lines": _json_rows}
    readers |= {".csv": _csv_rows, ".tsv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise DataError(
            f"cannot tell the format of {path}: expected an extension of "
            f"{', '.join(readers)}, got {path.suffix or 'none'}"
        )
    return readers[path.suffix.lower()](_read_text(path), problems)


def _read_text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a device, or a pipe that nobody writes to
        raise DataError(f"cannot read {path}: expected a regular file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(_not_utf8(path, raw)) from None


def _not_utf8(path: Path, raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{path} is UTF-16: save it as UTF-8"
    # Line by line: an offset of the whole decoding would be wrong by the length of a BOM.
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode("utf-8")) + 1
            byte = f"the byte 0x{line[error.start]:02x}"
            return f"{path} is not UTF-8: line {number}, column {column} holds {byte}"
    return f"{path} is not UTF-8"


def _json_rows(text: str, problems: Problems) -> Iterator[tuple[int, Fields]]:
    # Not splitlines(): U+2028 and the like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, _json_object(line)
        except RowError as error:
            problems.add(number, str(error))


def _json_object(line: str) -> Fields:
    try:
        fields = msgspec.json.decode(line, type=dict[str, object])
        json.loads(line, object_pairs_hook=_refuse_duplicates)
    except msgspec.MsgspecError as error:
        raise RowError(f"not a JSON object: {error}") from None
    except RecursionError:
        raise RowError("not a JSON object: nested too deeply") from None
    return fields


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
    _require_unique([name for name, _ in pairs])


def _require_unique(names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise RowError(f"given more than once: {shortened(', '.join(map(repr, repeated)))}")


def _csv_rows(text: str, problems: Problems) -> Iterator[tuple[int, Fields]]:
    table = read_csv(text)
    try:
        _require_unique([name for name in table.header if name])
    except RowError as error:
        problems.add(1, f"not CSV: {error}")
        return
    for line, cells in table.rows:
        try:
            yield line, table.fields(cells)
        except ValueError as error:
            problems.add(line, str(error))
    if table.fault is not None:
        line, reason = table.fault
        problems.add(line, f"not CSV: {reason}")


def _line_numbers(lines: Sequence[int]) -> str:
    if len(lines) == 1:
        return f"line {lines[0]}"
    shown = ", ".join(map(str, lines[:3]))
    return f"lines {shown}" + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
