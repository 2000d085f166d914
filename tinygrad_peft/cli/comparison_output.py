"""A comparison for people: progress, table and picture."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinygrad_peft.cli.text import MISSING, table
from tinygrad_peft.errors import MissingExtraError
from tinygrad_peft.train import Comparison, Event, Observer, Row, Turn, Watcher
from tinygrad_peft.train.plot import plot_comparison

__all__ = ["ENDINGS", "PLOT_FILE", "ProgressLines", "comparison_lines", "comparison_rows", "draw"]

PLOT_FILE = "comparison.png"
ENDINGS = {"finished": "", "interrupted": " (interrupted)", "failed": " (failed)"}


class ProgressLines(Watcher):
    """A line on standard error for each turn, above the progress display of its training."""

    def __init__(self, display: Observer) -> None:
        self.display = display

    def started(self, turn: Turn) -> None:
        """Name the contender."""
        _say(f"{turn.place}/{turn.count} {turn.contender.label}")

    def trained(self, event: Event) -> None:
        """Hand the event on to the display."""
        self.display(event)

    def ended(self, row: Row) -> None:
        """Report a failure; the display reports success."""
        if row.error is not None:
            _say(f"failed: {row.error}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def draw(comparison: Comparison, out: Path) -> str:
    """Draw the comparison into its folder; without matplotlib, return a line that says so."""
    try:
        plot_comparison(comparison, out / PLOT_FILE)
    except MissingExtraError as error:
        return f"{PLOT_FILE} is not drawn: {error}, then tinygrad-peft plot {out}"
    return ""


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return the table, and below it the failures and the contenders without a turn."""
    return [*table(comparison_rows(comparison)), *_notes(comparison)]


def comparison_rows(comparison: Comparison) -> list[Sequence[str]]:
    """Return a header, and the cells of each row."""
    classifies = comparison.classifies
    quality = "accuracy" if classifies else "loss"
    header = ("", quality, "trained", "of all", "seconds", "peak MB", "learning rate")
    return [header, *(_cells(row, classifies=classifies) for row in comparison.rows)]


def _cells(row: Row, *, classifies: bool) -> tuple[str, ...]:
    quality, ratio = row.accuracy if classifies else row.loss, row.ratio
    return (
        row.label + ENDINGS[row.outcome],
        _quality(quality, classifies=classifies),
        MISSING if row.trainable is None else f"{row.trainable:,}",
        MISSING if ratio is None else f"{100 * ratio:.3f} %",
        MISSING if row.seconds is None else f"{row.seconds:.1f}",
        MISSING if row.peak_memory is None else f"{row.peak_memory / 1e6:,.0f}",
        " and ".join(f"{rate:g}" for rate in row.rates) or MISSING,
    )


def _quality(value: float | None, *, classifies: bool) -> str:
    if value is None:
        return MISSING
    return f"{100 * value:.2f} %" if classifies else f"{value:.4f}"


def _notes(comparison: Comparison) -> Iterator[str]:
    for row in comparison.failed:
        yield f"{row.label} failed: {row.error}"
    if comparison.interrupted:
        yield "stopped by Ctrl-C"
    if comparison.waiting:
        yield f"not tried: {', '.join(comparison.waiting)}"
