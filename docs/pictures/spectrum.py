"""The singular values of the change that full fine-tuning learnt, as bars."""

from docs.pictures.axes import Axes
from docs.pictures.svg import Picture
from docs.pictures.update import DIRECTIONS, WIDTH, learn

__all__ = ["draw"]

AXES = Axes(x=(60, 740), y=(290, 50), x_values=(0.4, WIDTH + 0.6), y_values=(0, 4))


def draw() -> Picture:
    """Draw a bar per direction, and a mark at the task's own value."""
    learnt = learn()
    share = f"{100 * learnt.share:.0f} %"
    rest = f"{100 - 100 * learnt.share:.0f} %"
    values = ", ".join(f"{s:.2f}" for s in learnt.strengths[: DIRECTIONS + 1])
    picture = Picture(
        760,
        356,
        "Singular values of an update",
        f"Full fine-tuning moved a weight of {WIDTH} by {WIDTH} along all {WIDTH}"
        f" directions: {values}, and smaller. {share} of the squares lie in the first"
        f" {DIRECTIONS}, the task's.",
    )
    picture.text(20, 28, "singular value", "soft")
    AXES.rows(picture, (0, 1, 2, 3, 4))
    AXES.columns(picture, (1, 4, 8, 12, 16, 20, 24, 28, 32))
    _, floor = AXES.at(1, 0)
    for i, strength in enumerate(learnt.strengths, 1):
        x, top = AXES.at(i, float(strength))
        kind = "trained" if i <= DIRECTIONS else "frozen"
        picture.rect(x - 7, top, 14, floor - top, kind)
    for i, needed in enumerate(learnt.needed, 1):
        x, y = AXES.at(i, float(needed))
        picture.line([(x - 10, y), (x + 10, y)], "forward")
    picture.text(400, 338, "direction, the strongest first", "soft", anchor="middle")
    picture.text(
        176, 76, f"_{share} of the squares_: the task’s {DIRECTIONS} directions", "of-trained"
    )
    picture.line([(176, 94), (196, 94)], "forward")
    picture.text(204, 99, "what the task itself takes", "ink")
    picture.text(300, 214, f"_{rest}_: noise of the examples, in all the others", "of-frozen")
    return picture
