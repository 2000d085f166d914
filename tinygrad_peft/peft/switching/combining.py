"""Combining adapters into one: the weighted sum of their updates.

With updates ΔWᵢ and weights wᵢ:  W = W₀ + Σ wᵢ ΔWᵢ. Each method's plugin combines its own steps;
modules that were trained whole are summed here, with ΔWᵢ = Wᵢ - W₀.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError, failures, listed
from tinygrad_peft.host import Host
from tinygrad_peft.nn.module import mismatches
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.serialisation import config_to_dict
from tinygrad_peft.peft.hook_types import Combination, CombinationType, Combined, Source
from tinygrad_peft.peft.recipes.record import Record, Rewrite

__all__ = ["COMBINATION_TYPES", "CombinedAdapter", "combine_records", "fill_record"]

COMBINATION_TYPES: tuple[CombinationType, ...] = get_args(CombinationType)


@dataclass(frozen=True)
class CombinedAdapter:
    """The adapter that several were combined into.

    Attributes:
        recipe: the steps.
        tensors: for each step and path, the weights by their names in the module.
        lost: for each path, the share of the update that the rank left out.
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
    """Return an adapter whose update is the weighted sum of the updates in `records`.

    Raises:
        PeftError: all problems: weights that are not numbers, too few or too many; invalid
            settings; recipes of different methods; NaN; methods that cannot be combined; modules
            that one adapter trained whole and another adapted otherwise.
    """
    problems = _wrong_settings(records, weights, combination_type, rank, density, seed)
    problems = problems or _different_recipes(records) + _not_finite(records) + _taken(records)
    if problems:
        raise PeftError(f"the adapters cannot be combined:\n{listed(problems)}")
    how = Combination((), combination_type, rank, density, seed)
    steps = range(len(next(iter(records.values())).recipe))
    with np.errstate(over="ignore", invalid="ignore"):  # overflows are found by their results
        combined = [_step(step, list(records.values()), weights, host, how) for step in steps]
    lost = {path: share for step in combined for path, share in step.lost.items()}
    return CombinedAdapter(
        tuple(step.config for step in combined), tuple(step.tensors for step in combined), lost
    )


def fill_record(record: Record, combined: CombinedAdapter) -> None:
    """Set the weights of the combined recipe's record to the combined ones.

    Raises PeftError with every mismatch of a plugin's answer and its own settings, and with the
    weights that would be NaN or infinite.
    """
    problems: list[str] = []
    for step, tensors in enumerate(combined.tensors):
        wanted = record.named_parameters(step)
        found = {f"{path}.{n}": a for path, named in tensors.items() for n, a in named.items()}
        shapes = {name: p.shape for name, p in wanted.items()}
        problems = mismatches(shapes, {name: array.shape for name, array in found.items()})
        if problems:
            raise PeftError(
                f"step {step} of the combination does not fit its settings:\n{listed(problems)}"
            )
        for name, parameter in wanted.items():
            with np.errstate(over="ignore"):  # found by its result
                parameter.data = np.array(found[name], parameter.dtype)
            if not np.isfinite(parameter.data).all():
                problems.append(f"{name} would hold NaN or infinity")
    if problems:
        raise PeftError(f"the adapters cannot be combined:\n{listed(problems)}")


def _wrong_settings(
    records: Mapping[str, Record],
    weights: Sequence[float],
    combination_type: CombinationType,
    rank: int | None,
    density: float,
    seed: int,
) -> list[str]:
    names, kinds = ", ".join(map(repr, records)), ", ".join(COMBINATION_TYPES)
    rules = {
        "adapters: expected at least one, got none": not records,
        f"weights: expected {len(records)}, one per adapter ({names}), got {len(weights)}": (
            len(records) != len(weights)
        ),
        f"weights: expected finite numbers, got {list(weights)}": not all(map(_is_finite, weights)),
        f"combination_type: expected one of {kinds}, got {combination_type!r}": (
            combination_type not in COMBINATION_TYPES
        ),
        f"rank: expected at least 1, got {rank}": rank is not None and rank < 1,
        f"density: expected above 0 and at most 1, got {density}": not 0 < density <= 1,
        f"seed: expected an integer of at least 0, got {seed!r}": (
            not isinstance(seed, numbers.Integral) or seed < 0
        ),
    }
    return failures(rules)


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


def _taken(records: Mapping[str, Record]) -> list[str]:
    """List the base's weights that an adapter replaces without training them."""
    return [
        f"{adapter!r} has the base's own weights of {rewrite.seam.path} with other values"
        for adapter, record in records.items()
        for rewrite in record.rewrites
        if rewrite.saved and rewrite.seam.path not in record.targets[rewrite.step].saved
    ]


def _step(
    step: int, records: Sequence[Record], weights: Sequence[float], host: Host, how: Combination
) -> Combined:
    """Combine one step of all adapters."""
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
        why = "one adapter trained it whole, another adapted it otherwise"
        raise PeftError(f"step {step}:\n{listed(f'{path}: {why}' for path in both)}")
    names = dict.fromkeys(name for config in configs for name in config.modules_to_save)
    return Combined(
        dataclasses.replace(combined.config, modules_to_save=tuple(names)),
        {**combined.tensors, **saved},
        combined.lost,
    )


def _untrained(step: int, configs: Sequence[PeftConfig]) -> Combined:
    """Combine a step that trains nothing, such as quantising the base: all must be the same."""
    if any(config != configs[0] for config in configs):
        different = [str(config_to_dict(config)) for config in configs]
        raise PeftError(
            f"step {step} has no weights to sum, and different settings:\n{listed(different)}"
        )
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
    """Return W₀ + Σ wᵢ (Wᵢ - W₀) for each weight of modules that any adapter trained whole."""
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
    """Return W₀ + Σ wᵢ (Wᵢ - W₀); W₀ cancels exactly where the weights sum to one."""
    left = 1 - math.fsum(weight for weight, _ in parts)
    total = np.zeros_like(base) if left == 0 else left * base
    for weight, array in parts:
        total = total + weight * array
    return np.asarray(total, base.dtype)
