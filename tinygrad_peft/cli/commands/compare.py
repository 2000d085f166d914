"""`tinygrad-peft compare`."""

from typing import TYPE_CHECKING

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.cli.training_job import TrainingJob

if TYPE_CHECKING:
    from pathlib import Path

    from tinygrad_peft.train import Comparison

__all__ = ["compare"]


@command
@options.training_job(is_compared=True)
@click.option("--baseline", is_flag=True, help="A first row for the frozen model.")
@options.quiet
def compare(job: TrainingJob, *, baseline: bool, quiet: bool) -> Report:
    """Train several recipes from the same model, and compare them.

    A recipe is a method or several joined by " + ", each with its settings. After " @ " may stand a
    learning rate and a label of its own: "FIRST:r=8 + SECOND @ lr=2e-3, label=both".

    The folder gets comparison.json, comparison.png, and each recipe's adapter in a folder of its
    own. The exit status is 2 if a recipe failed.
    """
    from tinygrad_peft import train
    from tinygrad_peft.cli.comparison_output import ProgressLines
    from tinygrad_peft.cli.contenders import parse_contenders
    from tinygrad_peft.cli.output_folder import check_output
    from tinygrad_peft.cli.prepared_job import prepare
    from tinygrad_peft.peft import Host
    from tinygrad_peft.train.comparison_result import COMPARISON_FILE
    from tinygrad_peft.train.progress import progress_display

    host = Host.installed()
    contenders = parse_contenders(job.methods, host)
    refused = ("config.json", "adapter_config.json", "recipe.json", COMPARISON_FILE)
    check_output(job.out, refused=refused)
    ready = prepare(job, [contender.recipe for contender in contenders])
    if baseline:
        name = "frozen model" if ready.model.classifier is None else "frozen probe"
        contenders.insert(0, train.Contender(label=name))
    assert ready.eval_set is not None, "--eval is required"
    with progress_display(quiet=quiet) as display:
        comparison = train.compare(
            ready.model,
            contenders,
            ready.train_set,
            ready.eval_set,
            job.config,
            host=host,
            out=job.out,
            job=ready.description(),
            watcher=train.Watcher() if quiet else ProgressLines(display),
        )
    for row in comparison.rows:
        if row.folder is not None:
            ready.save_tokenizer(job.out / row.folder)
    return _report(comparison, job.out)


def _report(comparison: "Comparison", out: "Path") -> Report:
    import msgspec

    from tinygrad_peft.cli.comparison_output import PLOT_FILE, comparison_lines, draw
    from tinygrad_peft.train.comparison_result import COMPARISON_FILE

    missing = draw(comparison, out)
    values: dict[str, object] = msgspec.to_builtins(comparison)
    values |= {"out": str(out), "plot": None if missing else str(out / PLOT_FILE)}
    files = COMPARISON_FILE if missing else f"{COMPARISON_FILE}, {PLOT_FILE}"
    lines = [*comparison_lines(comparison), *filter(None, [missing])]
    lines.append(f"written: {files} and the adapters in {out}")
    status = 130 if comparison.interrupted else 2 if comparison.failed else 0
    return Report(values=values, lines=lines, status=status)
