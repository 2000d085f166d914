"""Sixteen levels for 4 bits: affine with one scale, affine in blocks, NF4 in blocks."""

import math
from dataclasses import dataclass

import numpy as np

from docs.pictures.axes import Axes
from docs.pictures.svg import Picture
from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import (
    NF4_LEVELS,
    dequantize_4bit,
    dequantize_nf4,
    quantize_nf4,
    quantize_to_4bit,
)

__all__ = ["Levels", "compute", "draw"]

SPREAD, SHAPE, BLOCK = 0.02, (1536, 576), 64
AXES = Axes(x=(40, 720), y=(176, 24), x_values=(-5.2, 5.2), y_values=(0, 1))


@dataclass(frozen=True)
class Levels:
    """A way to store weights: its 4-bit levels, in standard deviations, and its error.

    name: how the weight is stored.
    at: the 16 levels, those of the first block where there are blocks.
    error: of the whole weight, as a share of its norm.
    """

    name: str
    at: Array
    error: float


def compute() -> list[Levels]:
    """Compute levels and errors of three ways to store one weight drawn from N(0, 0.02²)."""
    weight = np.random.default_rng(0).normal(0, SPREAD, SHAPE).astype(np.float32)
    blocks = weight.reshape(-1, BLOCK)
    _, scale, zero = quantize_to_4bit(weight)
    _, block_scale, block_zero = quantize_to_4bit(blocks[0])
    codes = np.arange(16, dtype=np.uint8)
    in_blocks = np.stack([dequantize_4bit(*quantize_to_4bit(block)) for block in blocks])
    nf4_codes, absmax = quantize_nf4(weight, BLOCK)
    back = {
        "affine, one scale": dequantize_4bit(*quantize_to_4bit(weight)),
        "affine, blocks": in_blocks.reshape(SHAPE),
        "NF4, blocks": dequantize_nf4(nf4_codes, absmax, SHAPE, BLOCK),
    }
    at = (
        dequantize_4bit(codes, scale, zero),
        dequantize_4bit(codes, block_scale, block_zero),
        absmax[0] * NF4_LEVELS,
    )
    return [
        Levels(name, levels / SPREAD, _off(kept, weight))
        for (name, kept), levels in zip(back.items(), at, strict=True)
    ]


def draw() -> Picture:
    """Draw the density of the weights, and the levels of each way below it."""
    one, blocks, nf4 = compute()
    errors = [f"{100 * way.error:.1f} %" for way in (one, blocks, nf4)]
    picture = Picture(
        760,
        416,
        "Sixteen levels under a bell curve",
        f"Weights from a normal distribution, and the 16 values that 4 bits give them. Affine with"
        f" one scale reaches to the largest of all weights and is {errors[0]} off; affine in blocks"
        f" of {BLOCK} is {errors[1]} off, NF4 in blocks, with levels that are dense in the middle,"
        f" {errors[2]}.",
    )
    _bell(picture)
    count = math.prod(SHAPE)
    for y, way, kind, words in (
        (240, one, "frozen", f"affine, one scale for all {count:,} weights"),
        (308, blocks, "frozen", f"affine, a scale for each {BLOCK} weights: one block"),
        (376, nf4, "trained", f"NF4, a scale for each {BLOCK} weights: the same block"),
    ):
        _levels(picture, y, way, kind, words)
    return picture


def _bell(picture: Picture) -> None:
    grid = np.linspace(-5.2, 5.2, 105)
    curve = [AXES.at(x, math.exp(-x * x / 2)) for x in grid.tolist()]
    picture.polygon(curve, "grey")
    AXES.columns(picture, range(-5, 6))
    picture.text(720, 164, "standard deviations", "soft", anchor="end", size=13)
    picture.text(430, 52, "weights, *N*(0, *σ*²)")


def _levels(picture: Picture, y: float, way: Levels, kind: str, words: str) -> None:
    xs = [AXES.at(level, 0)[0] for level in way.at.tolist()]
    picture.line([(AXES.x[0], y + 14), (AXES.x[1], y + 14)], "hair")
    picture.lines([((x, y), (x, y + 28)) for x in xs], f"mark-{kind}")
    picture.text(AXES.x[0], y - 8, words, f"of-{kind}")
    picture.text(AXES.x[1], y - 8, f"_{100 * way.error:.1f} %_ off", f"of-{kind}", anchor="end")


def _off(kept: Array, weight: Array) -> float:
    return float(np.linalg.norm(kept - weight) / np.linalg.norm(weight))
