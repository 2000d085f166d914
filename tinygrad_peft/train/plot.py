"""A comparison as a picture: curves of the loss, and what each parameter buys.

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
from tinygrad_peft.models.safe_files import replacing
from tinygrad_peft.train.comparison import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_comparison", "plot_comparison", "require_matplotlib"]

Dash: TypeAlias = Literal["-", "--", "-.", ":"]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; grey is the
# frozen model's, and their yellow is left out, since it is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY, PALE = "#555555", "#DDDDDD"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Dash, ...] = ("-", "--", "-.")
WINDOW = 0.08  # the share of a curve that each of its points is the mean of
SIZE, DPI = (10.0, 4.4), 200  # inches, so 2000 pixels across


def require_matplotlib() -> None:
    """Raise MissingExtraError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib is not installed: pip install 'tinygrad-peft[plot]'")


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the rows into a PNG file, which is whole or as it was.

    Raises MissingExtraError without matplotlib.
    """
    figure = draw_comparison(comparison)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def draw_comparison(comparison: Comparison) -> "Figure":
    """The picture as a figure of matplotlib, which its caller may change and save.

    On the left the training loss by step, on the right accuracy (or loss) over the number of
    trained parameters. What was not measured is left out. Raises MissingExtraError without
    matplotlib.
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
    """A row, and how it looks."""

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
        _say(axes, "no recipe has made a step")


def _smoothed(losses: Sequence[float]) -> tuple[Array, Array]:
    """Steps and mean losses: each over a window that ends at the step, and never less than full."""
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
        _say(axes, "nothing was evaluated")
    elif not classifies:
        _limit(axes, [y for _, _, y in measured])


def _scale_by_ratio(axes: "Axes", low: float, high: float) -> None:
    """A logarithmic x axis with whole numbers, and enough of them."""
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
    """A point whose white edge keeps it apart from one that it covers in part."""
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
    """Cut off what is far above the usual loss: one recipe that diverged would flatten the rest."""
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
