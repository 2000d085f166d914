"""Rows of CSV as spreadsheets and pandas write it.

Columns without a name (an index), blank rows and blank cells past the header are passed over. The
delimiter is the one of a first line `sep=;`, or else the comma, semicolon or tab that splits the
header into the most columns.
"""

import csv
import io
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["CsvTable", "read_csv"]

Record: TypeAlias = tuple[int, Sequence[str]]  # the number of its last line, and its cells

_DELIMITERS = (",", ";", "\t")
_NAMED_DELIMITER = re.compile(r'"?sep=([^\r\n])"?\r?\n', re.IGNORECASE)
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class CsvTable:
    """The header of a table and its rows, up to the first fault of the format."""

    header: Sequence[str]  # () without any row
    rows: Sequence[Record]
    fault: tuple[int, str] | None  # a line number, and the reason

    def fields(self, cells: Sequence[str]) -> dict[str, object]:
        """Return a row's cells by the names of their columns.

        Raises ValueError for a row of another width. A filled cell past the last name is refused,
        as it may be the end of a row that an unquoted delimiter has shifted.
        """
        width, filled = _width(self.header), _width(cells)
        if len(cells) < width or filled > width:
            got = max(filled, min(len(cells), width))
            raise ValueError(f"expected {width} columns as in the header, got {got}")
        return {name: cell for name, cell in zip(self.header, cells, strict=False) if name}


def read_csv(text: str) -> CsvTable:
    """Read the table in a text. Rows that are all blank are left out."""
    delimiter, start = _delimiter(text)
    records: list[Record] = []
    fault = None
    with _cells_of_any_length(text):
        reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=delimiter, strict=True)
        skipped = text[:start].count("\n")
        try:
            records.extend((skipped + reader.line_num, cells) for cells in reader if _width(cells))
        except csv.Error as error:
            fault = skipped + reader.line_num, str(error)
    header = [name.strip() for name in records[0][1]] if records else []
    return CsvTable(header, records[1:], fault)


def _delimiter(text: str) -> tuple[str, int]:
    """Return the delimiter, and where the table begins."""
    named = _NAMED_DELIMITER.match(text)
    if named:
        return named[1], named.end()
    with _cells_of_any_length(text):
        widths = {delimiter: _header_width(text, delimiter) for delimiter in _DELIMITERS}
    return max(widths, key=widths.__getitem__), 0


def _header_width(text: str, delimiter: str) -> int:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return len(next((cells for cells in reader if _width(cells)), []))


def _width(cells: Sequence[str]) -> int:
    """Count the cells up to the last that is not blank."""
    return max((place for place, cell in enumerate(cells, 1) if cell.strip()), default=0)


@contextmanager
def _cells_of_any_length(text: str) -> Iterator[None]:
    """Lift the limit of 131,072 characters per cell, which all threads share."""
    with _ONE_AT_A_TIME:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, len(text)))
        try:
            yield
        finally:
            csv.field_size_limit(before)
