"""One adapter out of several: the weighted sum of what they change.

With deltas ΔWᵢ and weights wᵢ:  W = W₀ + Σ wᵢ ΔWᵢ. Each method's plugin combines its own steps;
modules that were trained whole are summed here, their delta being what they have more than W₀.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError, listed
from tinygrad_peft.host import Host
from tinygrad_peft.nn.module import mismatches
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.events import Combination, CombinationType, Combined, Source
from tinygrad_peft.peft.record import Record, Rewrite
from tinygrad_peft.peft.settings import config_to_dict

__all__ = ["COMBINATION_TYPES", "CombinedAdapter", "combine_records", "fill_record"]

COMBINATION_TYPES: tuple[CombinationType, ...] = get_args(CombinationType)


@dataclass(frozen=True)
class CombinedAdapter:
    """What several adapters became.

    Attributes:
        recipe: the steps.
        tensors: for each step and path, the weights by their names in the module.
        lost: for each path, the share of the wanted update that the rank left out.
    """

    recipe: tuple[PeftConfig, ...]
    tensors: tuple[Mapping[str, Mapping[str, Array]], ...] = field(repr=False)
    lost: Mapping[str, float]


def combine_records(
    records: Mapping[str, Record],
    weights: Sequence[float],
    host: Host,
    *,
    combination_type: CombinationType = "linear",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> CombinedAdapter:
    """One adapter whose update is the weighted sum of those of the adapters in `records`.

    Raises:
        PeftError: weights that are no numbers or too few or many, settings that cannot be, recipes
            of other methods, NaN, steps whose method cannot be combined, places that one adapter
            trained whole and another adapted otherwise: all that is wrong.
    """
    problems = _wrong_settings(records, weights, combination_type, rank, density)
    problems = problems or _different_recipes(records) + _not_finite(records)
    if problems:
        raise PeftError(f"the adapters cannot be combined:\n{listed(problems)}")
    how = Combination((), combination_type, rank, density, seed)
    steps = range(len(next(iter(records.values())).recipe))
    combined = [_step(step, list(records.values()), weights, host, how) for step in steps]
    lost = {path: share for step in combined for path, share in step.lost.items()}
    return CombinedAdapter(
        tuple(step.config for step in combined), tuple(step.tensors for step in combined), lost
    )


def fill_record(record: Record, combined: CombinedAdapter) -> None:
    """Give a record of the combined recipe the combined weights.

    Raises PeftError, which lists them, where a plugin's answer does not fit its own settings.
    """
    for step, tensors in enumerate(combined.tensors):
        wanted = record.named_parameters(step)
        found = {f"{path}.{n}": a for path, named in tensors.items() for n, a in named.items()}
        shapes = {name: p.shape for name, p in wanted.items()}
        problems = mismatches(shapes, {name: array.shape for name, array in found.items()})
        if problems:
            raise PeftError(f"step {step} of the combination does not fit:\n{listed(problems)}")
        for name, parameter in wanted.items():
            parameter.data = np.array(found[name], parameter.dtype)


def _wrong_settings(
    records: Mapping[str, Record],
    weights: Sequence[float],
    combination_type: CombinationType,
    rank: int | None,
    density: float,
) -> list[str]:
    names = ", ".join(map(repr, records))
    rules = {
        "at least one adapter is expected": bool(records),
        f"{len(records)} adapters ({names}) and {len(weights)} weights": (
            len(records) == len(weights)
        ),
        f"weights {list(weights)}: numbers are expected": all(map(_is_finite, weights)),
        f"combination_type {combination_type!r}: expected one of {', '.join(COMBINATION_TYPES)}": (
            combination_type in COMBINATION_TYPES
        ),
        f"rank {rank}: at least 1 is expected": rank is None or rank >= 1,
        f"density {density}: above 0 and at most 1 is expected": 0 < density <= 1,
    }
    return [problem for problem, holds in rules.items() if not holds]


def _different_recipes(records: Mapping[str, Record]) -> list[str]:
    methods = {
        name: " + ".join(config.peft_type.lower() for config in record.recipe)
        for name, record in records.items()
    }
    if len(set(methods.values())) == 1:
        return []
    return [f"{name!r} is {steps}" for name, steps in methods.items()]


def _is_finite(weight: object) -> bool:
    return isinstance(weight, numbers.Real) and math.isfinite(weight)


def _not_finite(records: Mapping[str, Record]) -> list[str]:
    return [
        f"{adapter!r} holds NaN or infinity: {name}"
        for adapter, record in records.items()
        for step in range(len(record.recipe))
        for name, parameter in record.named_parameters(step).items()
        if not np.isfinite(parameter.data).all()
    ]


def _step(
    step: int, records: Sequence[Record], weights: Sequence[float], host: Host, how: Combination
) -> Combined:
    """One step of all adapters as one."""
    configs = [record.recipe_as_trained()[step].flattened() for record in records]
    own = [[r.flattened() for r in record.rewrites if r.step == step] for record in records]
    saved = _saved_modules(own, weights)
    bare = [dataclasses.replace(config, modules_to_save=()) for config in configs]
    if not any(r.added and not r.saved for rewrites in own for r in rewrites):
        combined = _untrained(step, bare)
    else:
        sources = zip(bare, weights, map(_tensors, own), map(_base, own), strict=True)
        request = dataclasses.replace(how, sources=tuple(Source(*each) for each in sources))
        answer = host.one(hookspecs.combine_adapters, bare[0], request)
        if answer is None:
            method = configs[0].peft_type.lower()
            raise PeftError(f"step {step}: adapters of {method} cannot be combined")
        combined = answer
    both = [path for path in saved if path in combined.tensors]
    if both:
        why = "one adapter trained it whole, and another adapted it otherwise"
        raise PeftError(f"step {step}:\n{listed(f'{path}: {why}' for path in both)}")
    names = dict.fromkeys(name for config in configs for name in config.modules_to_save)
    return Combined(
        dataclasses.replace(combined.config, modules_to_save=tuple(names)),
        {**combined.tensors, **saved},
        combined.lost,
    )


def _untrained(step: int, configs: Sequence[PeftConfig]) -> Combined:
    """A step that trains nothing, such as the quantising of the base: it must be the same."""
    if any(config != configs[0] for config in configs):
        different = [str(config_to_dict(config)) for config in configs]
        raise PeftError(f"step {step} differs, and has no weights to sum:\n{listed(different)}")
    return Combined(configs[0], {})


def _tensors(rewrites: Sequence[Rewrite]) -> dict[str, dict[str, Array]]:
    return {
        rewrite.seam.path: {name: p.data for name, p in rewrite.added.items()}
        for rewrite in rewrites
        if rewrite.added and not rewrite.saved
    }


def _base(rewrites: Sequence[Rewrite]) -> dict[str, dict[str, Array]]:
    return {
        rewrite.seam.path: {name: p.data for name, p in rewrite.before.named_parameters()}
        for rewrite in rewrites
        if rewrite.added and not rewrite.saved
    }


def _saved_modules(
    own: Sequence[Sequence[Rewrite]], weights: Sequence[float]
) -> dict[str, dict[str, Array]]:
    """W₀ + Σ wᵢ (Wᵢ - W₀) for each weight of the modules that any adapter trained whole."""
    saved = [{r.seam.path: r for r in rewrites if r.saved} for rewrites in own]
    return {
        path: {
            name: _sum_of_deltas(
                dict(rewrite.before.named_parameters())[name].data,
                [
                    (w, each[path].added[name].data)
                    for w, each in zip(weights, saved, strict=True)
                    if path in each
                ],
            )
            for name in rewrite.added
        }
        for each_adapter in saved
        for path, rewrite in each_adapter.items()
    }


def _sum_of_deltas(base: Array, parts: Sequence[tuple[float, Array]]) -> Array:
    """W₀ + Σ wᵢ (Wᵢ - W₀), written so that W₀ cancels exactly where the weights sum to one."""
    left = 1 - math.fsum(weight for weight, _ in parts)
    total = np.zeros_like(base) if left == 0 else left * base
    for weight, array in parts:
        total = total + weight * array
    return np.asarray(total, base.dtype)
