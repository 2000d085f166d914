"""The error of the update truncated to each rank, against itself and against the task's change."""

from docs.pictures.axes import Axes
from docs.pictures.svg import Picture
from docs.pictures.update import WIDTH, learn, shares

__all__ = ["draw"]

AXES = Axes(x=(64, 720), y=(300, 50), x_values=(0, WIDTH), y_values=(0, 100))


def draw() -> Picture:
    """Draw both errors over the rank to which the update is truncated."""
    learnt, task = shares(learn())
    best = task.index(min(task))
    there, away, whole = (
        f"{100 * value:.0f} %" for value in (task[best], learnt[best], task[WIDTH])
    )
    picture = Picture(
        760,
        360,
        "Error against rank",
        "The update that full fine-tuning learnt, cut off at each rank. The error against the"
        f" update itself falls to nothing at rank {WIDTH} and is {away} at rank {best}; the error"
        f" against what the task takes is least at rank {best}, {there}, and {whole} uncut.",
    )
    picture.text(20, 28, "error, as a share of the norm", "soft")
    AXES.rows(picture, (0, 25, 50, 75, 100), " %")
    AXES.columns(picture, (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32))
    for values, colour in ((learnt, "frozen"), (task, "trained")):
        points = [AXES.at(rank, 100 * value) for rank, value in enumerate(values)]
        picture.line(points, f"mark-{colour}")
        for x, y in points:
            picture.circle(x, y, 3, colour)
    x, y = AXES.at(best, 100 * task[best])
    picture.circle(x, y, 7, "mark-trained")
    picture.text(x, y + 26, f"_{there}_ at rank {best}", "of-trained", anchor="middle")
    x, y = AXES.at(best, 100 * learnt[best])
    picture.text(x + 8, y - 8, f"_{away}_", "of-frozen")
    x, y = AXES.at(WIDTH, 100 * task[WIDTH])
    picture.text(
        x, y - 14, f"against what the task takes: _{whole}_ uncut", "of-trained", anchor="end"
    )
    picture.text(500, 268, "against what was learnt", "of-frozen")
    picture.text(392, 350, "rank at which the update is cut off", "soft", anchor="middle")
    return picture
