"""W beside B A at one scale, and both paths through a layer with LoRA."""

from dataclasses import dataclass

from docs.pictures.svg import Picture
from tinygrad_peft.reference import LoRALayer

__all__ = ["Sizes", "draw", "sizes"]

WIDTH, RANK = 256, 8


@dataclass(frozen=True)
class Sizes:
    """Shapes and counts of a square weight and of LoRA beside it."""

    weight: tuple[int, int]
    A: tuple[int, int]
    B: tuple[int, int]
    frozen: int
    trained: int


def sizes() -> Sizes:
    """Return the sizes of the layer."""
    layer = LoRALayer(WIDTH, WIDTH, RANK)
    (rank, inputs), (outputs, _) = layer.A.shape, layer.B.shape
    shape = (outputs, inputs)
    return Sizes(shape, (rank, inputs), layer.B.shape, outputs * inputs, layer.num_parameters())


def draw() -> Picture:
    """Draw one pixel per number, and below it the computation of the layer."""
    s = sizes()
    share = f"{s.trained / s.frozen:.2%}".replace("%", " %")
    picture = Picture(
        760,
        648,
        "LoRA: a frozen weight and two thin matrices",
        f"To scale, a pixel for each number: W, {s.weight[0]} by {s.weight[1]}, beside B,"
        f" {s.B[0]} by {s.B[1]}, and A, {s.A[0]} by {s.A[1]}, with {s.trained:,} numbers,"
        f" {share} of W's {s.frozen:,}. Below, forward: y = x Wᵀ + s (x Aᵀ) Bᵀ. The gradients go"
        " back through both paths to x, and to A and B, and not to W.",
    )
    _to_scale(picture, s, share)
    _forward(picture, s)
    _backward(picture)
    return picture


def _to_scale(picture: Picture, s: Sizes, share: str) -> None:
    (height, width), rank, top = s.weight, s.A[0], 58
    picture.rect(40, top, width, height, "frozen")
    picture.text(40 + width / 2, 180, "*W*", anchor="middle", size=26)
    picture.text(40 + width / 2, 206, f"{height} × {width}", anchor="middle")
    picture.text(40 + width / 2, 226, f"{s.frozen:,} numbers, frozen", anchor="middle")
    picture.text(346, 192, "+ *s* ·", anchor="middle", size=20)
    b, square = 398, 418
    picture.rect(b, top, rank, height, "trained")
    picture.text(b + rank / 2, top - 12, "*B*", "of-trained", anchor="middle", size=20)
    picture.text(b + rank / 2, top + height + 22, f"{s.B[0]} × {s.B[1]}", anchor="middle")
    picture.rect(square, top - 12 - rank, width, rank, "trained")
    picture.text(square + width / 2, 28, "*A*", "of-trained", anchor="middle", size=20)
    picture.text(square + width + 12, top - 11, f"{s.A[0]} × {s.A[1]}")
    picture.rect(square, top, width, height, "product")
    middle = square + width / 2
    picture.text(middle, 180, "*B A*", "of-trained", anchor="middle", size=26)
    picture.text(middle, 206, f"{height} × {width}, of rank {rank}", anchor="middle")
    picture.text(middle, 226, f"{s.trained:,} numbers, trained", anchor="middle")
    picture.text(middle, 246, f"{share} of *W*’s", anchor="middle")
    picture.text(40, top + height + 22, "to scale: one pixel, one number", "soft")


def _forward(picture: Picture, s: Sizes) -> None:
    up, low = 402, 522
    picture.text(40, up + 5, "*x*", size=20)
    picture.arrow([(58, up), (290, up)])
    picture.arrow([(410, up), (630, up)])
    picture.arrow([(650, up), (700, up)])
    picture.text(708, up + 5, "*y*", size=20)
    picture.arrow([(120, up), (120, low), (190, low)])
    picture.arrow([(270, low), (420, low)])
    picture.arrow([(500, low), (568, low)])
    picture.arrow([(592, low), (640, low), (640, up + 10)])
    picture.circle(120, up, 2.5, "head-forward")
    picture.plus(640, up)
    picture.rect(290, up - 28, 120, 62, "frozen")
    picture.text(350, up + 9, "*W*", anchor="middle", size=22)
    picture.polygon([(190, low - 32), (270, low - 12), (270, low + 26), (190, low + 46)], "trained")
    picture.text(230, low + 13, "*A*", anchor="middle", size=22)
    picture.polygon([(420, low - 12), (500, low - 32), (500, low + 46), (420, low + 26)], "trained")
    picture.text(460, low + 13, "*B*", anchor="middle", size=22)
    picture.circle(580, low + 6, 14, "plain")
    picture.text(580, low + 11, "*s*", anchor="middle", size=18)
    picture.text(345, low - 10, f"{s.A[0]} numbers a row", "soft", anchor="middle")


def _backward(picture: Picture) -> None:
    up, low = 416, 536
    picture.arrow([(700, up), (653, up)], "backward")
    picture.arrow([(628, up), (412, up)], "backward")
    picture.arrow([(288, up), (134, up)], "backward")
    picture.arrow([(654, up), (654, low), (595, low)], "backward")
    picture.arrow([(566, low), (502, low)], "backward")
    picture.arrow([(418, low), (272, low)], "backward")
    picture.arrow([(188, low), (106, low), (106, up + 1)], "backward")
    picture.arrow([(120, up), (58, up)], "backward")
    for x, y, words in (
        (676, up + 20, "*g*"),
        (520, up + 20, "*g*"),
        (214, up + 20, "*g W*"),
        (534, low + 20, "*s g*"),
        (345, low + 20, "*s g B*"),
        (148, low + 20, "*s g B A*"),
    ):
        picture.text(x, y, words, "of-back", anchor="middle", size=16)
    picture.text(36, up + 26, "*dx*", "of-back", size=16)
    for x, words in ((230, "*dA* = *s* (*g B*)ᵀ *x*"), (460, "*dB* = *s g*ᵀ (*x A*ᵀ)")):
        picture.arrow([(x, low + 28), (x, low + 52)], "backward")
        picture.text(x, low + 71, words, "of-back", anchor="middle", size=16)
    picture.text(350, up + 37, "no gradient", "soft", anchor="middle")
    picture.line([(600, 602), (640, 602)], "forward")
    picture.text(650, 607, "forward")
    picture.line([(600, 624), (640, 624)], "backward")
    picture.text(650, 629, "gradients")
