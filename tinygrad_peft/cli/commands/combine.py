"""`tinygrad-peft combine`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.errors import ConfigError

if TYPE_CHECKING:
    from tinygrad_peft.peft import CombinationType, PeftModel

__all__ = ["combine"]


@command
@click.option(
    "--adapter",
    "adapters",
    type=options.PATH,
    multiple=True,
    required=True,
    help="An adapter's folder; give it several times.",
)
@click.option("--weights", required=True, help="A number for each adapter: 0.7,0.3.")
@options.out
@options.overwrite
@options.model_of_adapter
@click.option(
    "--type",
    "combination_type",
    type=click.Choice(["linear", "ties", "dare_linear", "dare_ties"]),
    default="linear",
    show_default=True,
    help="The exact weighted sum, or one that leaves elements out.",
)
@click.option("--rank", type=int, help="The largest rank of the result; the loss is reported.")
@click.option(
    "--density", type=float, default=0.5, show_default=True, help="The share of elements kept."
)
@options.seed
def combine(
    *,
    adapters: tuple[Path, ...],
    weights: str,
    out: Path,
    overwrite: bool,
    model: str | None,
    combination_type: "CombinationType",
    rank: int | None,
    density: float,
    seed: int,
) -> Report:
    """Make one adapter from the weighted sum of several."""
    from tinygrad_peft.cli.output_folder import check_output
    from tinygrad_peft.peft import DEFAULT

    shares = _numbers(weights)
    if seed < 0:
        raise ConfigError(f"--seed: expected at least 0, got {seed}")
    check_output(out, overwrite=overwrite)
    peft = _loaded(adapters, model)
    if model is None:
        _require_no_base(peft, shares)
    names = list(peft.adapters)
    lost = peft.add_weighted_adapter(
        names,
        shares,
        DEFAULT,
        combination_type=combination_type,
        rank=rank,
        density=density,
        seed=seed,
    )
    peft.save_pretrained(out, adapters=[DEFAULT], overwrite=overwrite)
    lines = [f"combined {len(names)} adapters into {out}"]
    if lost:
        worst = max(lost.values())
        lines.append(f"the rank leaves out up to {worst:.1%} of the update ({len(lost)} modules)")
    return Report(values={"out": str(out), "weights": shares, "lost": lost}, lines=lines)


def _numbers(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [math.nan]
    if not all(map(math.isfinite, shares)):
        raise ConfigError(f"--weights: expected numbers, as in 0.7,0.3, got {text!r}")
    return shares


def _loaded(adapters: Sequence[Path], model: str | None) -> "PeftModel":
    """Load the adapters in their model, or in its shapes alone."""
    from tinygrad_peft.cli.adapted_models import load_described, read_folder
    from tinygrad_peft.cli.sources import adapter_path

    first, *others = [read_folder(adapter_path(adapter)) for adapter in adapters]
    peft = load_described(first, model, name="adapter_1")
    for number, folder in enumerate(others, 2):
        peft.load_adapter(folder, f"adapter_{number}")
    return peft


def _require_no_base(peft: "PeftModel", weights: Sequence[float]) -> None:
    """Raise ConfigError where the base's own weights are needed: W₀ + Σ w (W - W₀)."""
    recipes = peft.adapters.values()
    saved = {tuple(frozenset(step.modules_to_save) for step in recipe) for recipe in recipes}
    total = math.fsum(weights)
    because = "then the base's own weights take part, so name the --model"
    if len(saved) > 1:
        raise ConfigError(f"the adapters did not train the same modules whole: {because}")
    if any(names for steps in saved for names in steps) and total != 1:
        raise ConfigError(
            f"the adapters trained whole modules, and the weights sum to {total:g}, not 1: "
            f"{because}"
        )
