"""Options that several commands have."""

from collections.abc import Callable
from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "adapter",
    "as_json",
    "batches",
    "data",
    "method",
    "methods_to_compare",
    "methods_to_count",
    "model",
    "out",
    "seed",
    "training",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Folder(click.Path):
    """A folder to write; no name is none, where a path would make it the current one."""

    def convert(
        self,
        value: str | PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        if value == "":
            self.fail("a folder's name is expected (. is the current one)", param, ctx)
        return Path(value)


METHOD_HELP = (
    "A method and its settings: lora:r=8,lora_alpha=16,target_modules=query+value; lists are "
    "joined by +, and lora:{...} takes JSON. Several are applied in their order."
)


RECIPE_HELP = (
    "A recipe to compare: a method as in finetune, or several joined by ' + '; ' @ lr=2e-3, "
    "label=NAME' may follow. Give one for each row."
)


def _methods(help_text: str) -> Callable[[F], F]:
    return click.option(
        "--method", "methods", multiple=True, required=True, metavar="SPEC", help=help_text
    )


def adapter(*, required: bool) -> Callable[[F], F]:
    """An adapter's folder, or its name on the hub."""
    return click.option(
        "--adapter",
        type=click.Path(path_type=Path),
        required=required,
        help="A folder that finetune, Hugging Face PEFT, AdapterHub or mlx-lm wrote, or a name on "
        "the hub.",
    )


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    """The options in this order in the help."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


as_json: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object, and no more."
)
model: Callable[[F], F] = click.option(
    "--model",
    required=True,
    help="A folder in Hugging Face layout, a .gguf file, a name that fetch knows, or a name on the "
    "hub: organisation/name, with @revision or without.",
)
method: Callable[[F], F] = _methods(METHOD_HELP)
methods_to_compare: Callable[[F], F] = _methods(RECIPE_HELP)
methods_to_count: Callable[[F], F] = _methods(
    f"{METHOD_HELP} `full`, alone, is the whole model trained."
)
out: Callable[[F], F] = click.option(
    "--out", type=_Folder(), required=True, help="A folder to write."
)
seed: Callable[[F], F] = click.option(
    "--seed", type=int, default=0, show_default=True, help="The same seed, the same result."
)
batches: Callable[[F], F] = _all(
    click.option(
        "--batch-size", type=int, default=32, show_default=True, help="Examples at a time."
    ),
    click.option(
        "--max-length", type=int, default=128, show_default=True, help="Tokens of an example."
    ),
)
training: Callable[[F], F] = _all(
    click.option("--epochs", type=int, default=1, show_default=True, help="Passes over the data."),
    click.option("--lr", type=float, help="The peak learning rate.  [default: what suits methods]"),
    batches,
    click.option("--accumulation", type=int, default=1, show_default=True, help="Batches a step."),
    click.option("--max-steps", type=int, help="Stop after so many steps."),
    click.option(
        "--eval-every", type=int, default=0, help="Steps between evaluations; 0: an epoch."
    ),
    click.option(
        "--warmup", type=float, default=0.06, show_default=True, help="Share of all steps."
    ),
    click.option(
        "--schedule",
        type=click.Choice(["linear", "cosine", "constant"]),
        default="linear",
        show_default=True,
        help="How the learning rate goes on after the warm-up.",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(["adamw", "sgd"]),
        default="adamw",
        show_default=True,
        help="What takes the steps.",
    ),
    click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Decoupled."),
    click.option(
        "--max-grad-norm", type=float, default=1.0, show_default=True, help="0: no clipping."
    ),
    click.option(
        "--label-smoothing",
        type=float,
        default=0.0,
        show_default=True,
        help="Share of the other labels.",
    ),
    seed,
    click.option(
        "--pooling",
        type=click.Choice(["mean", "cls"]),
        default="mean",
        show_default=True,
        help="What a new classification head sees: the tokens' mean, or the first.",
    ),
    click.option("--quiet", is_flag=True, help="No progress display."),
)


def data(*, is_compared: bool) -> Callable[[F], F]:
    """What to train and evaluate on; a comparison needs both, and can tell the task itself."""
    return _all(
        click.option("--train", "train_data", required=True, help="JSON lines or CSV to train on."),
        click.option(
            "--eval", "eval_data", required=is_compared, help="JSON lines or CSV to evaluate on."
        ),
        click.option(
            "--task",
            type=click.Choice(["causal-lm", "sequence-classification"]),
            required=not is_compared,
            help="The data has text and label to classify; text, or prompt and completion, to go "
            "on with." + ("  [default: what the data is for]" if is_compared else ""),
        ),
    )
