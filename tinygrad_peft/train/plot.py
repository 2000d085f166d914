"""A comparison as a picture: loss curves, and quality by the number of trained parameters.

Needs matplotlib (the extra `plot`), whose figures are used without pyplot: no window, no global
settings, no state that a caller could notice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import MissingExtraError
from tinygrad_peft.files import replacing
from tinygrad_peft.train.comparison_result import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_comparison", "plot_comparison", "require_matplotlib"]

Dash: TypeAlias = Literal["-", "--", "-.", ":"]

# Okabe and Ito's colours, distinct under every kind of colour vision. Their yellow is left out, too
# pale for a line on white; grey is for the frozen model.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY, PALE = "#555555", "#DDDDDD"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Dash, ...] = ("-", "--", "-.")
WINDOW = 0.08  # of the moving average, as a share of the curve
SIZE, DPI = (10.0, 4.4), 200  # inches, so 2000 pixels across


def require_matplotlib() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib is not installed: pip install 'tinygrad-peft[plot]'")


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the rows into a PNG file, replaced whole or not at all.

    Raises MissingExtraError without matplotlib.
    """
    figure = draw_comparison(comparison)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def draw_comparison(comparison: Comparison) -> "Figure":
    """Draw the rows as a figure of matplotlib, for the caller to change and save.

    Left: the training loss by step. Right: accuracy (or loss) by the number of trained parameters.
    Missing measurements are left out. Raises MissingExtraError without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04)
    figure = Figure(figsize=SIZE, dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    curves, scatter = figure.subplots(1, 2)
    series = list(_series(comparison.rows))
    _draw_curves(curves, series)
    _draw_scatter(scatter, series, classifies=comparison.classifies)
    _draw_legend(figure, series)
    return figure


@dataclass(frozen=True)
class _Series:
    """A row with its colour, marker and line style."""

    row: Row
    colour: str
    marker: str
    dash: Dash


def _series(rows: Sequence[Row]) -> Iterator[_Series]:
    colours, markers = cycle(COLOURS), cycle(MARKERS)
    trained = 0
    for row in rows:
        if not row.methods:
            yield _Series(row, GREY, "*", ":")
            continue
        dash = DASHES[trained // len(COLOURS) % len(DASHES)]
        trained += 1
        yield _Series(row, next(colours), next(markers), dash)


# ---------- the loss by step ----------


def _draw_curves(axes: "Axes", series: Sequence[_Series]) -> None:
    _prepare(axes, "Training loss", "step", "loss, moving average")
    drawn = [s for s in series if s.row.losses]
    for s in drawn:
        steps, losses = _smoothed(s.row.losses)
        axes.plot(steps, losses, color=s.colour, linestyle=s.dash, linewidth=1.6)
        _mark(axes, steps[-1], losses[-1], s, size=8)
    if drawn:
        _limit(axes, [s.row.losses[0] for s in drawn])
    else:
        _say(axes, "no steps yet")


def _smoothed(losses: Sequence[float]) -> tuple[Array, Array]:
    """Return steps and mean losses, each over a full window that ends at the step."""
    values = np.asarray(losses, np.float64)
    width = max(1, round(WINDOW * len(values)))
    totals = np.cumsum(np.concatenate([[0.0], values]))
    return np.arange(width, len(values) + 1, dtype=np.float64), (
        totals[width:] - totals[:-width]
    ) / width


# ---------- quality by parameters ----------


def _draw_scatter(axes: "Axes", series: Sequence[_Series], *, classifies: bool) -> None:
    quality, unit = ("Accuracy", "accuracy, %") if classifies else ("Loss", "loss")
    _prepare(axes, f"{quality} by trained parameters", "trained parameters", unit)
    points = [(s, *_point(s.row, classifies=classifies)) for s in series]
    measured = [(s, x, y) for s, x, y in points if x is not None and y is not None]
    for s, x, y in measured:
        if not s.row.methods:
            axes.axhline(y, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
        if x:
            _mark(axes, x, y, s, size=11)
    counts = [x for _, x, _ in measured if x]
    if counts:
        _scale_by_ratio(axes, min(counts) / 2, max(counts) * 2)
    if not measured:
        _say(axes, "no evaluations yet")
    elif not classifies:
        _limit(axes, [y for _, _, y in measured])


def _scale_by_ratio(axes: "Axes", low: float, high: float) -> None:
    """Set a logarithmic x axis with enough labels, in whole numbers."""
    axes.set_xscale("log", subs=(2, 5) if high / low < 1000 else ())
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("{x:,.0f}")
    axes.tick_params(which="minor", labelsize=8, color=GREY, length=3.5, pad=3.5)


def _point(row: Row, *, classifies: bool) -> tuple[int | None, float | None]:
    if classifies:
        return row.trainable, None if row.accuracy is None else 100 * row.accuracy
    return row.trainable, row.loss


# ---------- both ----------


def _prepare(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", pad=8)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8, color=GREY)
    axes.grid(visible=True, color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _mark(axes: "Axes", x: float, y: float, series: _Series, *, size: float) -> None:
    """Draw a point with a white edge, which sets it apart from points that it overlaps."""
    axes.plot(
        *([x], [y]),
        color=series.colour,
        marker=series.marker,
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.7,
        linestyle="none",
        zorder=3,
    )


def _limit(axes: "Axes", losses: Sequence[float]) -> None:
    """Cut the axis at twice the median loss: a diverged recipe would flatten the others."""
    most = 2 * float(np.median(losses))
    if axes.get_ylim()[1] > most:
        axes.set_ylim(0, most)


def _say(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _draw_legend(figure: "Figure", series: Sequence[_Series]) -> None:
    from matplotlib.lines import Line2D

    shown = [s for s in series if s.row.losses or s.row.loss is not None]
    if not shown:
        return
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, label=_legend(s.row))
        for s in shown
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(4, len(shown)),
        fontsize=8.5,
        frameon=False,
    )


def _legend(row: Row) -> str:
    return row.label if row.outcome == "finished" else f"{row.label} ({row.outcome})"
