"""The picture of a comparison."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest

from tinygrad_peft.errors import MissingExtraError
from tinygrad_peft.train import Comparison, Row
from tinygrad_peft.train import plot as plotting
from tinygrad_peft.train.plot import draw_comparison, plot_comparison, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Rows: TypeAlias = tuple[Row, ...]

PROBE = Row(
    label="frozen probe",
    methods=(),
    outcome="finished",
    accuracy=0.75,
    loss=0.5,
    trainable=770,
    total=22_000_000,
)
LORA = replace(
    PROBE,
    label="lora",
    methods=({"peft_type": "LORA"},),
    rates=(1e-3,),
    accuracy=0.8,
    trainable=74_498,
    losses=tuple(0.7 - 0.004 * i for i in range(94)),
)
FAILED = Row(label="wild", methods=({},), rates=(1e30,), outcome="failed", error="training stopped")


def comparison(*rows: Row) -> Comparison:
    return Comparison(
        rows=rows, waiting=(), interrupted=False, job={}, config={}, versions={"numpy": "2"}
    )


def chunks(path: Path) -> dict[bytes, bytes]:
    """Split a PNG file into its parts by kind, and check their checksums."""
    content, at = path.read_bytes(), 8
    assert content[:at] == b"\x89PNG\r\n\x1a\n"
    found: dict[bytes, bytes] = {}
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        (checksum,) = struct.unpack(">I", content[at + 8 + size : at + 12 + size])
        assert zlib.crc32(kind + body) == checksum
        found[kind] = found.get(kind, b"") + body
        at += 12 + size
    return found


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    return tmp_path / "picture.png"


def first_point(line: "Line2D") -> tuple[float, float]:
    x, y = (np.asarray(values, float) for values in (line.get_xdata(), line.get_ydata()))
    return float(x[0]), float(y[0])


def labels(figure: "Figure") -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_picture_is_a_complete_png_and_not_blank(picture: Path) -> None:
    plot_comparison(comparison(PROBE, LORA, FAILED), picture)
    parts = chunks(picture)
    assert struct.unpack(">IIBB", parts[b"IHDR"][:10]) == (2000, 880, 8, 6)
    image = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(880, 1 + 4 * 2000)
    assert np.count_nonzero(image.std(axis=1)) > 400  # rows that are not of one colour
    assert [path.name for path in picture.parent.iterdir()] == ["picture.png"]
    first = picture.read_bytes()
    plot_comparison(comparison(PROBE, LORA, FAILED), picture)
    assert picture.read_bytes() == first


def test_the_curves_are_on_the_left_and_the_points_on_the_right(picture: Path) -> None:
    figure = draw_comparison(comparison(PROBE, LORA, FAILED))
    curves, points = figure.axes
    losses = np.asarray(curves.lines[0].get_ydata(), float)
    assert len(losses) == 87  # each is the mean of 8
    assert losses[0] == pytest.approx(np.mean(LORA.losses[:8]))
    assert points.get_xscale() == "log"
    assert [first_point(line) for line in points.lines[-2:]] == [(770, 75), (74_498, 80)]
    assert labels(figure) == ["frozen probe", "lora"]


def test_without_accuracy_the_loss_is_plotted_over_the_parameters(picture: Path) -> None:
    figure = draw_comparison(comparison(replace(LORA, accuracy=None, loss=2.5)))
    _, points = figure.axes
    assert points.get_ylabel() == "loss"
    assert first_point(points.lines[0]) == (74_498, 2.5)


def test_an_interrupted_run_is_marked(picture: Path) -> None:
    figure = draw_comparison(comparison(replace(LORA, outcome="interrupted")))
    assert labels(figure) == ["lora (interrupted)"]


@pytest.mark.parametrize("rows", [(), (FAILED,)], ids=["nothing", "a failure"])
def test_a_picture_without_measurements_says_so(picture: Path, rows: Rows) -> None:
    curves, points = draw_comparison(comparison(*rows)).axes
    assert [text.get_text() for text in curves.texts] == ["no steps yet"]
    assert [text.get_text() for text in points.texts] == ["no evaluations yet"]


def test_a_model_that_trains_nothing_is_a_line_alone(picture: Path) -> None:
    as_it_is = replace(PROBE, accuracy=None, trainable=0)
    _, points = draw_comparison(comparison(as_it_is)).axes
    [line] = points.lines
    assert np.asarray(line.get_ydata(), float).tolist() == [0.5, 0.5]


def test_many_recipes_look_different(picture: Path) -> None:
    rows = [replace(LORA, label=f"r={r}") for r in range(15)]
    curves, _ = draw_comparison(comparison(*rows)).axes
    looks = {(line.get_color(), line.get_linestyle()) for line in curves.lines[::2]}
    assert len(looks) == 15


def test_a_diverged_recipe_does_not_flatten_the_others(picture: Path) -> None:
    wild = replace(LORA, label="wild", losses=(0.7, *[1e30] * 93))
    curves, _ = draw_comparison(comparison(LORA, wild)).axes
    assert curves.get_ylim() == (0, 1.4)


def test_global_settings_are_left_alone(picture: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw_comparison(comparison(PROBE, LORA))
    assert dict(mpl.rcParams) == before


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plotting, "find_spec", lambda _name: None)
    told = r"^matplotlib is not installed: pip install 'tinygrad-peft\[plot\]'$"
    with pytest.raises(MissingExtraError, match=told):
        require_matplotlib()
    with pytest.raises(MissingExtraError, match=told):
        plot_comparison(comparison(PROBE), tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []
