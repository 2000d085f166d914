"""`tinygrad-peft finetune`."""

from tinygrad_peft.cli.folders import check_output
from tinygrad_peft.cli.output import columns, emit
from tinygrad_peft.cli.preparing import TrainingOptions, prepare
from tinygrad_peft.peft import Host, PeftModel, get_peft_model, parse_method
from tinygrad_peft.train import TrainResult
from tinygrad_peft.train.heads import with_saved_head
from tinygrad_peft.train.output_folder import train_into
from tinygrad_peft.train.progress import progress_display

__all__ = ["finetune"]


def finetune(options: TrainingOptions, *, as_json: bool, quiet: bool) -> int:
    """Train, save and report. Returns the exit status: 130 after Ctrl-C, else 0."""
    host = Host.installed()
    recipe = [parse_method(spec, host) for spec in options.methods]
    config = options.train_config()
    check_output(options.out, refused=("config.json", "adapter_config.json", "recipe.json"))
    ready = prepare(options)
    recipe_with_head = with_saved_head(recipe, ready.model)
    peft = get_peft_model(ready.model, recipe_with_head, seed=options.seed, host=host)
    peft.release_base()  # the folder is what is wanted of this run, and not the base
    with progress_display(quiet=quiet or as_json) as display:
        result = train_into(
            options.out,
            peft,
            ready.train_set,
            ready.eval_set,
            config,
            observers=[display],
            job=ready.job(options),
        )
    _report(options, peft, result, as_json=as_json)
    return 130 if result.interrupted else 0


def _report(
    options: TrainingOptions, peft: PeftModel, result: TrainResult, *, as_json: bool
) -> None:
    trainable, total = peft.get_nb_trainable_parameters()
    best = result.best
    values = {
        "out": str(result.saved_to or options.out),
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
    rows.append(("saved in", str(result.saved_to or options.out)))
    emit(values, columns(rows), as_json=as_json)
