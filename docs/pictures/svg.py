"""SVG by hand: few shapes, real text, colours for light and dark pages.

A picture brings its own paper, so that it is legible where the page's colours are not the reader's.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TypeAlias

__all__ = ["Picture", "Point"]

Point: TypeAlias = tuple[float, float]

# What a colour stands for, and its value on light and on dark paper.
COLOURS = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#57606a", "#9da7b3"),
    "hair": ("#d0d7de", "#3d444d"),
    "grey": ("#f3f5f7", "#171d26"),
    "frozen": ("#3b6ea8", "#79aee8"),
    "frozen-fill": ("#dde9f6", "#1b304b"),
    "trained": ("#b35000", "#f2a65e"),
    "trained-fill": ("#ffe1c4", "#57330f"),
    "packed": ("#137567", "#56c9ba"),
    "packed-fill": ("#d2eee8", "#113d37"),
    "back": ("#a8207a", "#f083c6"),
    "back-fill": ("#f9dcee", "#4d1a3b"),
}
# Classes of shapes, lines and texts: (property, colour) each.
CLASSES: dict[str, tuple[tuple[str, str], ...]] = {
    "paper": (("fill", "paper"),),
    "frozen": (("fill", "frozen-fill"), ("stroke", "frozen")),
    "trained": (("fill", "trained-fill"), ("stroke", "trained")),
    "packed": (("fill", "packed-fill"), ("stroke", "packed")),
    "gradient": (("fill", "back-fill"), ("stroke", "back")),
    "plain": (("fill", "paper"), ("stroke", "soft")),
    "grey": (("fill", "grey"), ("stroke", "soft")),
    "frame": (("stroke", "hair"),),
    "leader": (("stroke", "soft"),),
    "place": (("stroke", "soft"),),
    "product": (("stroke", "trained"),),
    "forward": (("stroke", "ink"),),
    "backward": (("stroke", "back"),),
    "hair": (("stroke", "hair"),),
    "mark-frozen": (("stroke", "frozen"),),
    "mark-trained": (("stroke", "trained"),),
    "mark-packed": (("stroke", "packed"),),
    "head-forward": (("fill", "ink"),),
    "head-backward": (("fill", "back"),),
    "ink": (("fill", "ink"),),
    "soft": (("fill", "soft"),),
    "of-frozen": (("fill", "frozen"),),
    "of-trained": (("fill", "trained"),),
    "of-packed": (("fill", "packed"),),
    "of-back": (("fill", "back"),),
}
FIXED = (
    'text{font:14px system-ui,-apple-system,"Segoe UI","Noto Sans",Helvetica,Arial,sans-serif}',
    '.math{font-family:"STIX Two Text",Cambria,Georgia,"Noto Serif",serif;font-style:italic}',
    ".code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}",
    ".strong{font-weight:600}",
    ".frame,.leader,.place,.product,.forward,.backward,.hair{fill:none}",
    ".mark-frozen,.mark-trained,.mark-packed{fill:none;stroke-width:2}",
    ".forward,.backward{stroke-width:1.5}",
    ".place,.product,.backward{stroke-dasharray:5 3}",
    ".leader{stroke-width:.75}",
    ".sub{font-size:11px}",
)
HEAD = 7.0  # the length of an arrow's head
# How a part of a line is marked, and as what.
MARKUP = (
    (r"\*([^*]+)\*", r'<tspan class="math">\1</tspan>'),
    (r"`([^`]+)`", r'<tspan class="code">\1</tspan>'),
    (r"(?<!\w)_([^_]+)_(?!\w)", r'<tspan class="strong">\1</tspan>'),
    (r"~(\w+)$", r'<tspan class="sub" dy="4">\1</tspan>'),
)


@dataclass
class Picture:
    """A drawing of width x height pixels, with a title and a description in words."""

    width: int
    height: int
    title: str
    description: str
    _parts: list[str] = field(default_factory=list)
    _used: set[str] = field(default_factory=lambda: {"paper"})

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, *, radius: float = 0
    ) -> None:
        """Draw a rectangle from its upper left corner."""
        round_ = f' rx="{_n(radius)}"' if radius else ""
        size = f'width="{_n(width)}" height="{_n(height)}"{round_}'
        self._add("rect", f'x="{_n(x)}" y="{_n(y)}" {size}', kind)

    def circle(self, x: float, y: float, radius: float, kind: str) -> None:
        """Draw a circle around (x, y)."""
        self._add("circle", f'cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"', kind)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """Draw straight strokes from point to point."""
        self._add("path", f'd="M{_path(points)}"', kind)

    def lines(self, ends: Sequence[tuple[Point, Point]], kind: str) -> None:
        """Draw separate strokes as one shape."""
        self._add("path", f'd="{"".join("M" + _path(pair) for pair in ends)}"', kind)

    def polygon(self, points: Sequence[Point], kind: str) -> None:
        """Draw a closed shape."""
        self._add("path", f'd="M{_path(points)}Z"', kind)

    def arrow(self, points: Sequence[Point], kind: str = "forward") -> None:
        """Draw strokes from point to point with a head at the last."""
        (x0, y0), (x, y) = points[-2:]
        length = math.dist((x0, y0), (x, y))
        u, v = (x - x0) / length, (y - y0) / length
        bx, by, side = x - HEAD * u, y - HEAD * v, HEAD / 2
        self.line([*points[:-1], (bx, by)], kind)
        head = [(x, y), (bx - side * v, by + side * u), (bx + side * v, by - side * u)]
        self.polygon(head, f"head-{kind}")

    def plus(self, x: float, y: float) -> None:
        """Draw a circled plus around (x, y)."""
        self.circle(x, y, 10, "plain")
        self.lines([((x - 5, y), (x + 5, y)), ((x, y - 5), (x, y + 5))], "forward")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        kind: str = "ink",
        *,
        anchor: str = "start",
        size: int = 14,
    ) -> None:
        """Write a line with its baseline at y.

        *a* is a formula's letter, `a` is code, _a_ is strong, and a last ~a is an index. anchor:
        start, middle or end.
        """
        where = f'x="{_n(x)}" y="{_n(y)}"'
        if anchor != "start":
            where += f' text-anchor="{anchor}"'
        if size != 14:
            where += f' style="font-size:{size}px"'
        self._add("text", where, kind, _marked_up(words))

    def paragraph(self, x: float, y: float, lines: Sequence[str], kind: str = "ink") -> None:
        """Write lines below one another."""
        for i, words in enumerate(lines):
            self.text(x, y + 19 * i, words, kind)

    def svg(self) -> str:
        """Return the text of the file."""
        view, size = (
            f"0 0 {self.width} {self.height}",
            f'width="{self.width}" height="{self.height}"',
        )
        named = 'role="img" aria-labelledby="title desc"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" {size} {named}>',
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="desc">{escape(self.description)}</desc>',
                f"<style>\n{self._style()}\n</style>",
                '<rect width="100%" height="100%" rx="8" class="paper"/>',
                *self._parts,
                "</svg>\n",
            ]
        )

    def _add(self, tag: str, attributes: str, kind: str, content: str | None = None) -> None:
        self._used.add(kind)
        end = "/>" if content is None else f">{content}</{tag}>"
        self._parts.append(f'<{tag} class="{kind}" {attributes}{end}')

    def _style(self) -> str:
        light, dark = (
            "\n".join(_rule(kind, theme) for kind in CLASSES if kind in self._used)
            for theme in (0, 1)
        )
        return "\n".join([*FIXED, light, "@media (prefers-color-scheme:dark){", dark, "}"])


def _rule(kind: str, theme: int) -> str:
    values = ";".join(f"{name}:{COLOURS[colour][theme]}" for name, colour in CLASSES[kind])
    return f".{kind}{{{values}}}"


def _marked_up(words: str) -> str:
    marked = escape(words, quote=False)
    for pattern, replacement in MARKUP:
        marked = re.sub(pattern, replacement, marked)
    return marked


def _path(points: Sequence[Point]) -> str:
    return "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _n(value: float) -> str:
    """Round a coordinate to a tenth of a pixel, so that every machine writes the same."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")
