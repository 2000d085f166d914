"""What people read of a comparison."""

from collections.abc import Iterator, Sequence

from tinygrad_peft.cli.output import MISSING, table
from tinygrad_peft.train import Comparison, Row

__all__ = ["ENDINGS", "comparison_lines", "comparison_rows"]

ENDINGS = {"finished": "", "interrupted": " (interrupted)", "failed": " (failed)"}


def comparison_lines(comparison: Comparison) -> list[str]:
    """The table, and below it what failed and why, and what had no turn."""
    return [*table(comparison_rows(comparison)), *_notes(comparison)]


def comparison_rows(comparison: Comparison) -> list[Sequence[str]]:
    """A header, and the cells of each row."""
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
