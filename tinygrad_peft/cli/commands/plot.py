"""`tinygrad-peft plot`."""

from pathlib import Path

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command

__all__ = ["plot"]


@command
@click.argument("folder", type=options.PATH)
def plot(folder: Path) -> Report:
    """Draw the picture of the comparison in FOLDER again."""
    from tinygrad_peft.cli.comparison_output import PLOT_FILE
    from tinygrad_peft.train.comparison_result import COMPARISON_FILE, read_comparison
    from tinygrad_peft.train.plot import plot_comparison

    picture = folder / PLOT_FILE
    plot_comparison(read_comparison(folder / COMPARISON_FILE), picture)
    return Report(values={"plot": str(picture)}, lines=[f"drawn: {picture}"])
