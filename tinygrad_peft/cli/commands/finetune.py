"""`tinygrad-peft finetune`."""

from typing import TYPE_CHECKING

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.cli.text import columns
from tinygrad_peft.cli.training_job import TrainingJob

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tinygrad_peft.cli.prepared_job import PreparedJob
    from tinygrad_peft.peft import Host, PeftConfig, PeftModel
    from tinygrad_peft.train import TrainResult

__all__ = ["finetune"]


@command
@options.training_job(is_compared=False)
@options.quiet
def finetune(job: TrainingJob, *, resume: bool, quiet: bool) -> Report:
    """Train methods on a data set, and save the adapter.

    The folder gets adapter_config.json, adapter_model.safetensors, recipe.json, metrics.json and
    log.jsonl. A run that a signal stopped, or that was killed, goes on with --resume and the
    options that it had.
    """
    from tinygrad_peft.cli.output_folder import check_output
    from tinygrad_peft.cli.prepared_job import prepare
    from tinygrad_peft.peft import Host, parse_method
    from tinygrad_peft.train.output_folder import check_folder, train_into
    from tinygrad_peft.train.progress import progress_display

    if bool(job.methods) == (job.adapter is not None):
        got = "both" if job.methods else "neither"
        raise click.UsageError(f"expected --method, or --adapter to start from, got {got}")
    if job.adapter is not None:
        for name, given in {"--new-head": job.new_head, "--pooling": job.pooling}.items():
            if given:
                raise click.UsageError(f"{name}: the head comes with the adapter")
    host = Host.installed()
    recipe = [parse_method(spec, host) for spec in job.methods]
    held = ("config.json", "adapter_config.json", "recipe.json")
    check_folder(job.out, resume=resume)
    check_output(job.out, refused=() if resume else held)
    ready = prepare(job, [recipe])
    peft = _adapted(ready, recipe, host)
    peft.release_base()  # only the adapter is saved
    with progress_display(quiet=quiet) as display:
        result = train_into(
            job.out,
            peft,
            ready.train_set,
            ready.eval_set,
            job.config,
            observers=[display],
            job=ready.description(),
            resume=resume,
        )
    ready.save_tokenizer(result.saved_to or job.out)
    return _report(job.out, peft, result)


def _adapted(ready: "PreparedJob", recipe: "Sequence[PeftConfig]", host: "Host") -> "PeftModel":
    """Return the model with the recipe, or with the adapter to start from."""
    from tinygrad_peft.peft import get_peft_model
    from tinygrad_peft.train.heads import with_saved_head

    if ready.adapted is not None:
        return ready.adapted
    with_head = with_saved_head(recipe, ready.model)
    return get_peft_model(ready.model, with_head, seed=ready.job.config.seed, host=host)


def _report(out: "Path", peft: "PeftModel", result: "TrainResult") -> Report:
    from tinygrad_peft.train.checkpoints import has_checkpoints

    trainable, total = peft.get_nb_trainable_parameters()
    best, saved_in = result.best, str(result.saved_to or out)
    values = {
        "out": saved_in,
        "outcome": result.outcome,
        "steps": result.steps,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "trainable": trainable,
        "total": total,
        "loss": result.losses[-1] if result.losses else None,
        "eval_loss": best.loss if best else None,
        "eval_accuracy": best.accuracy if best else None,
    }
    rows = [
        ("steps", f"{result.steps:,}"),
        ("seconds", f"{result.seconds:.1f}"),
        ("trainable", f"{trainable:,} of {total:,} ({100 * trainable / total:.3f} %)"),
    ]
    if result.interrupted:
        rows.insert(0, ("outcome", "interrupted"))
        if has_checkpoints(out):
            rows.insert(1, ("to go on", "the same command with --resume"))
    if result.losses:
        rows.append(("last training loss", f"{result.losses[-1]:.4f}"))
    if best is not None:
        rows.append(("evaluation loss", f"{best.loss:.4f}"))
        if best.accuracy is not None:
            rows.append(("accuracy", f"{100 * best.accuracy:.2f} %"))
    rows.append(("saved in", saved_in))
    status = 0 if result.stopped_by is None else 128 + result.stopped_by
    return Report(values=values, lines=columns(rows), status=status)
