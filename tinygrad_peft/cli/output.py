"""What commands print: a table or lines for people, or one JSON object for programs."""

import json
import sys
from collections.abc import Mapping, Sequence

__all__ = ["columns", "emit"]


def emit(values: Mapping[str, object], lines: Sequence[str], *, as_json: bool) -> None:
    """Print `values` as JSON, or else `lines`."""
    text = json.dumps(values, indent=2, ensure_ascii=False) if as_json else "\n".join(lines)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with their columns aligned; numbers to the right."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(_cell(c, w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _cell(text: str, width: int) -> str:
    is_number = text[:1].isdigit() or text[:1] == "-"
    return text.rjust(width) if is_number else text.ljust(width)
