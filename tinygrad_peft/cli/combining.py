"""`tinygrad-peft combine`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinygrad_peft.cli.fetching import adapter_path
from tinygrad_peft.cli.folders import check_output
from tinygrad_peft.cli.loading import load_told, read_folder
from tinygrad_peft.cli.output import emit
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.peft import DEFAULT, CombinationType, PeftModel

__all__ = ["How", "combine_adapters"]


@dataclass(frozen=True)
class How:
    """What `PeftModel.add_weighted_adapter` takes beside names and weights."""

    combination_type: CombinationType
    rank: int | None
    density: float
    seed: int


def combine_adapters(
    adapters: Sequence[Path],
    weights: str,
    out: Path,
    model: str | None,
    how: How,
    *,
    as_json: bool,
) -> None:
    """Write the weighted sum of the adapters into `out`."""
    shares = _numbers(weights)
    check_output(out, refused=("config.json",))
    peft = _loaded(adapters, model)
    if model is None:
        _need_no_base(peft, shares)
    names = list(peft.adapters)
    lost = peft.add_weighted_adapter(
        names,
        shares,
        DEFAULT,
        combination_type=how.combination_type,
        rank=how.rank,
        density=how.density,
        seed=how.seed,
    )
    peft.save_pretrained(out, adapters=[DEFAULT])
    worst = max(lost.values(), default=0.0)
    lines = [f"combined {len(names)} adapters into {out}"]
    if lost:
        lines.append(f"the rank leaves out up to {worst:.1%} of the update ({len(lost)} modules)")
    emit({"out": str(out), "weights": shares, "lost": lost}, lines, as_json=as_json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text!r}: numbers are expected, as in 0.7,0.3") from None


def _loaded(adapters: Sequence[Path], model: str | None) -> PeftModel:
    """A model, or its shapes alone, with the adapters."""
    first, *others = [read_folder(adapter_path(adapter)) for adapter in adapters]
    peft = load_told(first, model, name="adapter_1")
    for number, folder in enumerate(others, 2):
        peft.load_adapter(folder, f"adapter_{number}")
    return peft


def _need_no_base(peft: PeftModel, weights: Sequence[float]) -> None:
    """Raise ConfigError where the base's own weights would be needed: W₀ + Σ w (W - W₀)."""
    recipes = peft.adapters.values()
    saved = {tuple(frozenset(step.modules_to_save) for step in recipe) for recipe in recipes}
    total, because = (
        math.fsum(weights),
        "then the base's own weights take part, so name the --model",
    )
    if len(saved) > 1:
        raise ConfigError(
            f"the adapters trained other modules whole than each other: then {because}"
        )
    if any(names for steps in saved for names in steps) and total != 1:
        raise ConfigError(
            f"the adapters trained whole modules, and the weights sum to {total:g}, not 1: "
            f"then {because}"
        )
