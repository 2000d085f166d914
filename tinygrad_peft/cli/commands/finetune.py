"""`tinygrad-peft finetune`."""

from typing import TYPE_CHECKING

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.cli.text import columns
from tinygrad_peft.cli.training_job import TrainingJob

if TYPE_CHECKING:
    from pathlib import Path

    from tinygrad_peft.peft import PeftModel
    from tinygrad_peft.train import TrainResult

__all__ = ["finetune"]


@command
@options.training_job(is_compared=False)
@options.quiet
def finetune(job: TrainingJob, *, quiet: bool) -> Report:
    """Train methods on a data set, and save the adapter.

    The folder gets adapter_config.json, adapter_model.safetensors, recipe.json, metrics.json and
    log.jsonl.
    """
    from tinygrad_peft.cli.output_folder import check_output
    from tinygrad_peft.cli.prepared_job import prepare
    from tinygrad_peft.peft import Host, get_peft_model, parse_method
    from tinygrad_peft.train.heads import with_saved_head
    from tinygrad_peft.train.output_folder import train_into
    from tinygrad_peft.train.progress import progress_display

    host = Host.installed()
    recipe = [parse_method(spec, host) for spec in job.methods]
    check_output(job.out, refused=("config.json", "adapter_config.json", "recipe.json"))
    ready = prepare(job, [recipe])
    recipe_with_head = with_saved_head(recipe, ready.model)
    peft = get_peft_model(ready.model, recipe_with_head, seed=job.config.seed, host=host)
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
        )
    return _report(job.out, peft, result)


def _report(out: "Path", peft: "PeftModel", result: "TrainResult") -> Report:
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
    if result.losses:
        rows.append(("last training loss", f"{result.losses[-1]:.4f}"))
    if best is not None:
        rows.append(("evaluation loss", f"{best.loss:.4f}"))
        if best.accuracy is not None:
            rows.append(("accuracy", f"{100 * best.accuracy:.2f} %"))
    rows.append(("saved in", saved_in))
    return Report(values=values, lines=columns(rows), status=130 if result.interrupted else 0)
