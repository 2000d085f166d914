"""Scales and their ticks, for the pictures that plot numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from docs.pictures.svg import Picture, Point

__all__ = ["Axes"]


@dataclass(frozen=True)
class Axes:
    """A plot: its place in pixels, and the values at its ends, (left, right) and (bottom, top)."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_values: tuple[float, float]
    y_values: tuple[float, float]

    def at(self, x: float, y: float) -> Point:
        """Convert a point to pixels."""
        return _scaled(x, self.x_values, self.x), _scaled(y, self.y_values, self.y)

    def rows(self, picture: Picture, values: Sequence[float], unit: str = "") -> None:
        """Draw a hairline across the plot at each value, and write the value before it."""
        for value in values:
            _, y = self.at(self.x_values[0], value)
            picture.line([(self.x[0], y), (self.x[1], y)], "hair")
            picture.text(self.x[0] - 8, y + 5, f"{value:g}{unit}", "soft", anchor="end", size=13)

    def columns(self, picture: Picture, values: Sequence[float]) -> None:
        """Write each value below the plot."""
        for value in values:
            x, _ = self.at(value, self.y_values[0])
            picture.text(
                x, self.y[0] + 20, f"{value:g}".replace("-", "−"), "soft", anchor="middle", size=13
            )


def _scaled(value: float, values: tuple[float, float], pixels: tuple[float, float]) -> float:
    share = (value - values[0]) / (values[1] - values[0])
    return pixels[0] + share * (pixels[1] - pixels[0])
