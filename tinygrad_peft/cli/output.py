"""What commands print: a table or lines for people, or one JSON object for programs."""

import sys
from collections.abc import Mapping, Sequence

import msgspec

__all__ = ["columns", "emit", "printable"]


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


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with their columns aligned: numbers, under a header or not, to the right."""
    aligned = [_aligned(column) for column in zip(*rows, strict=True)]
    return ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    right = all(cell.lstrip("-")[:1].isdigit() for cell in column[1:])
    return [cell.rjust(width) if right else cell.ljust(width) for cell in column]
