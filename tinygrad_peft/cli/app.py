"""The commands and their options.

Only click is imported here. A command imports what it runs when it runs, so that help is there at
once.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from tinygrad_peft.cli import options
from tinygrad_peft.errors import TinygradPeftError, explained

if TYPE_CHECKING:
    from tinygrad_peft.models import SaveDtype
    from tinygrad_peft.peft import CombinationType

__all__ = ["cli", "run"]


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; what goes wrong is told in plain lines.

    0: done; 1: a fault of this program, or of what `inspect` was to look at; 2: something that the
    user can mend; 130: Ctrl-C.
    """
    if "--debug" in arguments:
        return _call([argument for argument in arguments if argument != "--debug"])
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell
            return _call(arguments)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return _fail("stopped by Ctrl-C", 130)
    except Exception as error:  # noqa: BLE001 - no traceback without --debug
        return _fail(*_explained(error))


def _call(arguments: Sequence[str]) -> int:
    status: int | None = cli.main(list(arguments), standalone_mode=False)
    return status or 0


def _explained(error: Exception) -> tuple[str, int]:
    """What to tell the user of an error, and the exit status."""
    if isinstance(error, TinygradPeftError):
        return explained(error), 2
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", 2
    if isinstance(error, MemoryError):
        return "out of memory: try a smaller --batch-size or --max-length", 2
    kind = type(error).__name__
    return f"internal error: {kind}: {error} (--debug shows where; please report it)", 1


def _fail(message: str, status: int) -> int:
    _say(message)
    return status


def _tell(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - the standard library's signature
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Show a warning without the line of the source that it is from."""
    _say(f"warning: {message}")


def _say(message: str) -> None:
    from tinygrad_peft.cli.output import printable

    print(f"tinygrad-peft: {printable(message)}", file=sys.stderr)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tinygrad-peft", prog_name="tinygrad-peft")
@click.option(
    "--without", "names", multiple=True, metavar="PLUGIN", help="Leave an installed plugin out."
)
@click.pass_context
def cli(context: click.Context, *, names: tuple[str, ...]) -> None:
    """Fine-tune real transformers on a CPU with PEFT methods that are all plugins.

    Every command takes --json for one JSON object on standard output, and --debug for a traceback
    where something goes wrong.
    """
    if names:
        from tinygrad_peft.host import leaving_out

        context.with_resource(leaving_out(names))


@cli.command()
@options.as_json
def methods(*, as_json: bool) -> None:
    """List the plugins, their distributions, and their methods with all settings."""
    from tinygrad_peft.cli.listing import show_methods

    show_methods(as_json=as_json)


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--verify", is_flag=True, help="Hash again what is in the cache already.")
@options.as_json
def fetch(names: tuple[str, ...], *, verify: bool, as_json: bool) -> None:
    """Get a real model or data set into the cache, its checksum verified.

    NAME is minilm-l6, smollm2, movie-reviews or devils-dictionary.
    """
    from tinygrad_peft.cli.fetching import fetch_all

    fetch_all(names, verify=verify, as_json=as_json)


@cli.command()
@options.model
@options.data(is_compared=False)
@options.method
@options.out
@options.training
@options.as_json
def finetune(*, as_json: bool, quiet: bool, **settings: Any) -> int:  # noqa: ANN401 - as click gives them
    """Train the methods' parameters on a data set, and save the adapter.

    The folder gets adapter_config.json, adapter_model.safetensors, recipe.json, metrics.json and
    log.jsonl.
    """
    from tinygrad_peft.cli.finetuning import finetune
    from tinygrad_peft.cli.preparing import TrainingOptions

    return finetune(TrainingOptions(**settings), as_json=as_json, quiet=quiet)


@cli.command()
@options.model
@options.data(is_compared=True)
@options.methods_to_compare
@click.option("--baseline", is_flag=True, help="A first row for the frozen model.")
@options.out
@options.training
@options.as_json
def compare(*, baseline: bool, as_json: bool, quiet: bool, **settings: Any) -> int:  # noqa: ANN401 - as click gives them
    """Train several recipes, each from the same model, and compare them.

    A recipe is a method or several joined by " + ", each with its settings. After " @ " may stand a
    learning rate and a label of its own: "lora:r=8 + prompt_tuning @ lr=2e-3, label=both".

    The folder gets comparison.json, comparison.png, and each recipe's adapter in a folder of its
    own.
    """
    from tinygrad_peft.cli.comparing import compare_recipes
    from tinygrad_peft.cli.preparing import TrainingOptions

    wanted = TrainingOptions(**settings)
    return compare_recipes(wanted, baseline=baseline, as_json=as_json, quiet=quiet)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@options.as_json
def plot(*, folder: Path, as_json: bool) -> None:
    """Draw comparison.png again from the comparison.json in FOLDER."""
    from tinygrad_peft.cli.comparing import plot_folder

    plot_folder(folder, as_json=as_json)


@cli.command()
@options.model
@options.adapter(required=False)
@click.option("--data", required=True, help="JSON lines or CSV.")
@options.batches
@options.as_json
def evaluate(
    *,
    model: str,
    adapter: Path | None,
    data: str,
    batch_size: int,
    max_length: int,
    as_json: bool,
) -> None:
    """Loss, and accuracy or perplexity, of a model with its adapter on a data set."""
    from tinygrad_peft.cli.evaluating import evaluate_data

    evaluate_data(model, adapter, data, batch_size, max_length, as_json=as_json)


@cli.command()
@options.model
@options.adapter(required=False)
@click.option("--prompt", required=True, help="The text to go on from.")
@click.option("--max-new-tokens", type=int, default=50, show_default=True, help="At most.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: greedy.")
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Draw from the likeliest share."
)
@options.seed
@options.as_json
def generate(
    *,
    model: str,
    adapter: Path | None,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    as_json: bool,
) -> None:
    """Go on from a prompt."""
    from tinygrad_peft.cli.generating import Sampling, generate_text

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    generate_text(model, adapter, prompt, sampling, as_json=as_json)


@cli.command()
@options.model
@options.adapter(required=True)
@options.out
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="How the weights are stored.",
)
@options.as_json
def merge(*, model: str, adapter: Path, out: Path, dtype: "SaveDtype", as_json: bool) -> None:
    """Fold an adapter into its model: a plain checkpoint that transformers loads."""
    from tinygrad_peft.cli.merging import merge_adapter

    merge_adapter(model, adapter, out, dtype, as_json=as_json)


@cli.command()
@click.option(
    "--adapter",
    "adapters",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="An adapter's folder; give it several times.",
)
@click.option("--weights", required=True, help="A number for each adapter: 0.7,0.3.")
@options.out
@click.option("--model", help="The model; needed if the adapters do not tell which it is.")
@click.option(
    "--type",
    "combination_type",
    type=click.Choice(["linear", "ties", "dare_linear", "dare_ties"]),
    default="linear",
    show_default=True,
    help="The exact weighted sum, or one that leaves elements out.",
)
@click.option("--rank", type=int, help="The largest rank of the result; what is lost is told.")
@click.option(
    "--density", type=float, default=0.5, show_default=True, help="The share of elements kept."
)
@options.seed
@options.as_json
def combine(
    *,
    adapters: tuple[Path, ...],
    weights: str,
    out: Path,
    model: str | None,
    combination_type: "CombinationType",
    rank: int | None,
    density: float,
    seed: int,
    as_json: bool,
) -> None:
    """Make one adapter whose update is the weighted sum of several."""
    from tinygrad_peft.cli.combining import How, combine_adapters

    how = How(combination_type, rank, density, seed)
    combine_adapters(adapters, weights, out, model, how, as_json=as_json)


@cli.command()
@options.adapter(required=True)
@options.out
@click.option(
    "--layout",
    type=click.Choice(["peft", "adapterhub", "mlx-lm"], case_sensitive=False),
    required=True,
    help="Whose library shall read it.",
)
@click.option("--model", help="The model; needed if the adapter does not tell which it is.")
@options.as_json
def convert(*, adapter: Path, out: Path, layout: str, model: str | None, as_json: bool) -> None:
    """Write an adapter as Hugging Face PEFT, AdapterHub or mlx-lm has it.

    Whose it is now is told from what is in it.
    """
    from tinygrad_peft.cli.converting import convert_adapter

    convert_adapter(adapter, out, layout, model, as_json=as_json)


@cli.command()
@click.option("--shape", help="A named shape, such as llama-7b, gpt2 or bert-base.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="A config.json, or the folder it is in."
)
@options.methods_to_count
@options.as_json
def count(
    *, shape: str | None, config: Path | None, methods: tuple[str, ...], as_json: bool
) -> None:
    """Parameters that methods train on a model of some shape; no weights are needed."""
    from tinygrad_peft.cli.counting import count_parameters

    count_parameters(shape, config, methods, as_json=as_json)


@cli.command()
@click.argument("path")
@click.option("--model", help="The model to hold an adapter against: its settings are read.")
@options.as_json
def inspect(path: str, model: str | None, *, as_json: bool) -> int:
    """Tell what a model or an adapter is, and all that is wrong with it; no weight is read.

    PATH is a folder, or a .gguf or .safetensors file. The exit status is 1 if anything is wrong.
    """
    from tinygrad_peft.cli.inspecting import inspect_files

    return inspect_files(path, model, as_json=as_json)
