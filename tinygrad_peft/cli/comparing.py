"""`tinygrad-peft compare`, and `tinygrad-peft plot`."""

import sys
from pathlib import Path

import msgspec

from tinygrad_peft.cli.comparison_report import comparison_lines
from tinygrad_peft.cli.folders import check_output
from tinygrad_peft.cli.output import emit
from tinygrad_peft.cli.preparing import TrainingOptions, prepare
from tinygrad_peft.cli.recipes import parse_contenders
from tinygrad_peft.errors import MissingExtraError
from tinygrad_peft.peft import Host
from tinygrad_peft.train import Comparison, Contender, Event, Observer, Row, Turn, Watcher, compare
from tinygrad_peft.train.comparison_result import COMPARISON_FILE, read_comparison
from tinygrad_peft.train.plot import plot_comparison
from tinygrad_peft.train.progress import progress_display

__all__ = ["PLOT_FILE", "ProgressLines", "compare_recipes", "draw", "plot_folder"]

PLOT_FILE = "comparison.png"


def compare_recipes(options: TrainingOptions, *, baseline: bool, as_json: bool, quiet: bool) -> int:
    """Train, compare and report. Returns the exit status.

    0: all recipes have finished; 2: some have failed; 130: Ctrl-C ended it.
    """
    host = Host.installed()
    contenders = parse_contenders(options.methods, host)
    config = options.train_config()
    refused = ("config.json", "adapter_config.json", "recipe.json", COMPARISON_FILE)
    check_output(options.out, refused=refused)
    ready = prepare(options)
    if baseline:
        name = "frozen model" if ready.model.classifier is None else "frozen probe"
        contenders.insert(0, Contender(label=name))
    assert ready.eval_set is not None, "the command asks for it"
    with progress_display(quiet=quiet or as_json) as display:
        comparison = compare(
            ready.model,
            contenders,
            ready.train_set,
            ready.eval_set,
            config,
            host=host,
            out=options.out,
            job=ready.job(options),
            watcher=Watcher() if quiet or as_json else ProgressLines(display),
        )
    _report(comparison, options.out, as_json=as_json)
    if comparison.interrupted:
        return 130
    return 2 if comparison.failed else 0


class ProgressLines(Watcher):
    """Says on standard error whose turn it is, above what the display shows of its training."""

    def __init__(self, display: Observer) -> None:
        self.display = display

    def started(self, turn: Turn) -> None:
        """Name the contender."""
        _say(f"{turn.place}/{turn.count} {turn.contender.label}")

    def trained(self, event: Event) -> None:
        """Hand it on."""
        self.display(event)

    def ended(self, row: Row) -> None:
        """Say what failed; the display has told what ended well."""
        if row.error is not None:
            _say(f"failed: {row.error}")


def draw(comparison: Comparison, out: Path) -> str:
    """Draw the comparison into its folder; what there is to say where that cannot be."""
    try:
        plot_comparison(comparison, out / PLOT_FILE)
    except MissingExtraError as error:
        return f"{PLOT_FILE} is not drawn: {error}, then tinygrad-peft plot {out}"
    return ""


def plot_folder(folder: Path, *, as_json: bool) -> None:
    """Draw a folder's comparison again.

    Raises CheckpointError where there is none, and MissingExtraError without matplotlib.
    """
    picture = folder / PLOT_FILE
    plot_comparison(read_comparison(folder / COMPARISON_FILE), picture)
    emit({"plot": str(picture)}, [f"drawn: {picture}"], as_json=as_json)


def _report(comparison: Comparison, out: Path, *, as_json: bool) -> None:
    missing = draw(comparison, out)
    values: dict[str, object] = msgspec.to_builtins(comparison)
    values |= {"out": str(out), "plot": None if missing else str(out / PLOT_FILE)}
    files = COMPARISON_FILE if missing else f"{COMPARISON_FILE}, {PLOT_FILE}"
    lines = [*comparison_lines(comparison), *filter(None, [missing])]
    lines.append(f"written: {files} and the adapters in {out}")
    emit(values, lines, as_json=as_json)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
