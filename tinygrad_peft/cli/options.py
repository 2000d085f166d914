"""Options that several commands share."""

from collections.abc import Callable
from dataclasses import fields
from functools import reduce, wraps
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from tinygrad_peft.cli.command import Report
from tinygrad_peft.cli.training_job import TrainingJob
from tinygrad_peft.train.config import TrainConfig

__all__ = [
    "METHOD_HELP",
    "NAME",
    "PATH",
    "adapter",
    "allow_nonfinite",
    "batches",
    "method",
    "model",
    "model_of_adapter",
    "out",
    "overwrite",
    "quiet",
    "seed",
    "training_job",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Filled(click.ParamType[Any]):
    """A path or a name. An empty one is refused: as a path it is the current folder."""

    def __init__(self, kind: type[str] | type[Path]) -> None:
        self.kind = kind
        self.name = "text" if kind is str else "path"

    def convert(
        self,
        value: str | PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | Path:
        """Return the value as its kind."""
        if value == "":
            self.fail("expected a path or a name, got '' (. is the current folder)", param, ctx)
        return self.kind(value)


PATH, NAME = _Filled(Path), _Filled(str)

METHOD_HELP = (
    "A method of `methods` and its settings: NAME:r=8,target_modules=query+value; lists are "
    "joined by +, and NAME:{...} takes JSON. Several are applied in their order."
)
RECIPE_HELP = (
    "A recipe to compare: a method as in finetune, or several joined by ' + '; ' @ lr=2e-3, "
    "label=NAME' may follow. Give one for each row."
)


def method(help_text: str = METHOD_HELP, *, required: bool = True) -> Callable[[F], F]:
    """Add --method, which may be given several times."""
    return click.option(
        "--method", "methods", multiple=True, required=required, metavar="SPEC", help=help_text
    )


def adapter(*, required: bool, purpose: str = "") -> Callable[[F], F]:
    """Add --adapter: a folder, or a name on the hub."""
    return click.option(
        "--adapter",
        type=PATH,
        required=required,
        help=f"{purpose}A folder that finetune, Hugging Face PEFT, AdapterHub or mlx-lm wrote, or "
        "a name on the hub.",
    )


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Add options in the order that the help shows."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


def _setting(name: str, help_text: str) -> Callable[[F], F]:
    """Make the option of a setting of `TrainConfig`, with its default and type there."""
    default = getattr(TrainConfig, name)
    return click.option(
        f"--{name.replace('_', '-')}",
        type=_type_of(get_type_hints(TrainConfig)[name]),
        default=default,
        show_default=default is not None,
        help=help_text,
    )


def _type_of(hint: Any) -> "click.ParamType[Any] | type":  # noqa: ANN401 - a type, as typing has it
    """Return int for `int | None`, and a choice for a Literal."""
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    (kind,) = {*(get_args(hint) or (hint,))} - {NoneType}
    assert isinstance(kind, type)
    return kind


model: Callable[[F], F] = click.option(
    "--model",
    type=NAME,
    required=True,
    help="A folder in Hugging Face layout, a .gguf file, a name that fetch knows, or a name on the "
    "hub: organisation/name, with @revision or without.",
)
model_of_adapter: Callable[[F], F] = click.option(
    "--model", type=NAME, help="The model; needed if the adapter does not describe it."
)
out: Callable[[F], F] = click.option("--out", type=PATH, required=True, help="A folder to write.")
overwrite: Callable[[F], F] = click.option(
    "--overwrite", is_flag=True, help="Replace a model, adapter or comparison in --out."
)
allow_nonfinite: Callable[[F], F] = click.option(
    "--allow-nonfinite", is_flag=True, help="Load weights that are NaN or infinite."
)
quiet: Callable[[F], F] = click.option("--quiet", is_flag=True, help="No progress display.")
seed: Callable[[F], F] = _setting("seed", "The same seed, the same result.")
batches: Callable[[F], F] = _all(
    _setting("batch_size", "Examples at a time."),
    _setting("max_length", "Tokens of an example.  [default: the model's limit]"),
)
_training: Callable[[F], F] = _all(
    _setting("epochs", "Passes over the data."),
    _setting("lr", "The peak learning rate.  [default: each method's own]"),
    batches,
    _setting("accumulation", "Batches per step."),
    _setting("max_steps", "Stop after this many steps."),
    _setting("eval_every", "Steps between evaluations; 0: an epoch."),
    _setting("warmup", "Share of all steps."),
    _setting("schedule", "The learning rate after the warm-up."),
    _setting("optimizer", "The optimiser."),
    _setting("weight_decay", "Decoupled under AdamW."),
    _setting("max_grad_norm", "0: no clipping."),
    _setting("label_smoothing", "Share of the other labels."),
    seed,
    click.option(
        "--pooling",
        type=click.Choice(["cls", "mean", "last"]),
        help="The input of a new classification head: the first token, the tokens' mean, or the "
        "last token.  [default: the model's own, or as in transformers]",
    ),
    click.option(
        "--new-head", is_flag=True, help="Train a new head, also where the model has one."
    ),
    allow_nonfinite,
)

_checkpoints: Callable[[F], F] = _all(
    _setting("save_every", "Steps between checkpoints; 0: none.  [default: by time]"),
    _setting("save_minutes", "Minutes between checkpoints, without steps."),
    _setting("keep", "Checkpoints to keep."),
    click.option("--resume", is_flag=True, help="Go on with the run that stopped in --out."),
)


def training_job(*, is_compared: bool) -> Callable[[Callable[..., Report]], Callable[..., Report]]:
    """Add the options of a training job, which the command gets as one `TrainingJob`.

    A comparison needs --eval, and its data says the task if --task is not given. Without one there
    are checkpoints, and the command gets `resume`.
    """

    def add(command: Callable[..., Report]) -> Callable[..., Report]:
        @wraps(command)
        def with_job(**given: Any) -> Report:  # noqa: ANN401 - as click gives them
            settings = {f.name: given.pop(f.name) for f in fields(TrainConfig) if f.name in given}
            settings["max_grad_norm"] = settings["max_grad_norm"] or None
            named = {f.name: given.pop(f.name) for f in fields(TrainingJob) if f.name in given}
            return command(TrainingJob(config=TrainConfig(**settings), **named), **given)

        data = _data(is_compared=is_compared)
        if is_compared:
            return _all(model, data, method(RECIPE_HELP), out, _training)(with_job)
        start = adapter(required=False, purpose="Start from an adapter, without --method. ")
        own = (method(required=False), start, out, _training, _checkpoints)
        return _all(model, data, *own)(with_job)

    return add


def _data(*, is_compared: bool) -> Callable[[F], F]:
    return _all(
        click.option(
            "--train", "train_data", type=NAME, required=True, help="JSON lines or CSV to train on."
        ),
        click.option(
            "--eval",
            "eval_data",
            type=NAME,
            required=is_compared,
            help="JSON lines or CSV to evaluate on.",
        ),
        click.option(
            "--task",
            type=click.Choice(["causal-lm", "sequence-classification"]),
            required=not is_compared,
            help="The data has text and label to classify; text, or prompt and completion, to go "
            "on with." + ("  [default: what the data is for]" if is_compared else ""),
        ),
    )
