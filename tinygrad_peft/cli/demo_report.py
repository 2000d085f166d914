"""The table that the demo ends with."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from tinygrad_peft.cli.demo_job import Outcome
from tinygrad_peft.cli.output import columns

__all__ = ["closing_lines", "print_outcome", "rows"]

HEADER = ("", "frozen probe", "LoRA")


def print_outcome(outcome: Outcome, *, rich: bool | None = None) -> None:
    """Print what was measured on standard output.

    `rich` decides for or against a drawn table; by default there is one in a terminal, where rich
    (the extra `cli`) is installed.
    """
    if rich is None:
        rich = sys.stdout.isatty() and find_spec("rich") is not None
    if rich:
        _draw(rows(outcome))
    else:
        print("\n".join(["", *columns([HEADER, *rows(outcome)]), ""]))
    print("\n".join(closing_lines(outcome)), flush=True)


def rows(outcome: Outcome) -> list[tuple[str, str, str]]:
    """What is compared, before and after."""
    both = (outcome.probe, outcome.lora)
    lines: dict[str, Sequence[str]] = {
        "accuracy on the test set": [f"{100 * score.accuracy:.2f} %" for score in both],
        "trained parameters": [f"{score.trainable:,}" for score in both],
        "seconds to train": [f"{score.seconds:.1f}" for score in both],
    }
    return [(name, before, after) for name, (before, after) in lines.items()]


def closing_lines(outcome: Outcome) -> list[str]:
    """How the merged model compares with the adapted one, and where both are."""
    same = f"{outcome.equal:,} of {outcome.tested:,} predictions are the adapted model's"
    return [
        f"merged model: {same}; no logit differs by more than {outcome.largest_difference:.1e}",
        f"written: the adapter in {outcome.adapter}, the merged model in {outcome.merged}",
    ]


def _draw(lines: Sequence[tuple[str, str, str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - an extra
    from rich.table import Table  # noqa: PLC0415 - an extra

    table = Table()
    for name in HEADER:
        table.add_column(name, justify="right" if name else "left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
