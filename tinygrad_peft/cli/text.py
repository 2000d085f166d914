"""Text for people: tables and columns."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["MISSING", "columns", "table"]

MISSING = "–"  # a cell without a number


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows under a header: drawn in a terminal if rich is installed, else plain."""
    if not (sys.stdout.isatty() and find_spec("rich")):
        return columns(rows)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

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
    """Align rows as lines: numbers, under a header or not, to the right."""
    aligned = [_aligned(column) for column in zip(*rows, strict=True)]
    return ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    right = _are_numbers(column[1:])
    return [cell.rjust(width) if right else cell.ljust(width) for cell in column]


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(cell == MISSING or cell.lstrip("-")[:1].isdigit() for cell in cells)
