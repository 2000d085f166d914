"""What commands print: a table or lines for people, or one JSON object for programs."""

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import msgspec

__all__ = ["MISSING", "columns", "emit", "printable", "table"]

MISSING = "–"  # what a cell shows where there is no number


def emit(values: Mapping[str, object], lines: Sequence[str], *, as_json: bool) -> None:
    """Print `values` as JSON, or else `lines`; numbers that are not finite become null."""
    text = "\n".join(lines)
    if as_json:
        text = msgspec.json.format(msgspec.json.encode(values), indent=2).decode()
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """The text without what a terminal would obey: names in a file may hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under a header as lines: drawn in a terminal where rich is installed, else plain."""
    if not (sys.stdout.isatty() and find_spec("rich")):
        return columns(rows)
    from rich.console import Console  # noqa: PLC0415 - an extra
    from rich.markup import escape  # noqa: PLC0415 - an extra
    from rich.table import Table  # noqa: PLC0415 - an extra

    header, *body = rows
    drawn = Table()
    for name, *cells in zip(header, *body, strict=True):
        drawn.add_column(name, justify="right" if _are_numbers(cells) else "left")
    for row in body:
        drawn.add_row(*map(escape, row))
    console = Console()
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().splitlines()


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with their columns aligned: numbers, under a header or not, to the right."""
    aligned = [_aligned(column) for column in zip(*rows, strict=True)]
    return ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    right = _are_numbers(column[1:])
    return [cell.rjust(width) if right else cell.ljust(width) for cell in column]


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(cell == MISSING or cell.lstrip("-")[:1].isdigit() for cell in cells)
