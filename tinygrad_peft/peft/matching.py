"""What a step of a recipe wants of its folder, and what is there."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.models.hf import FLOATS, StoredTensor, read_header
from tinygrad_peft.models.inspection import likeness
from tinygrad_peft.nn import Parameter
from tinygrad_peft.nn.module import mismatches
from tinygrad_peft.peft.events import ForeignStep
from tinygrad_peft.peft.foreign import foreign_places
from tinygrad_peft.peft.layout import (
    LAYOUTS,
    PEFTS,
    REPARAMETERIZATION,
    WEIGHTS,
    Layout,
    layout_of,
    weights_file,
)
from tinygrad_peft.peft.record import Record
from tinygrad_peft.peft.repeated import without_base

__all__ = ["Match", "match_step", "named_otherwise", "step_tensors", "wrong_dtypes"]

# With bias="all" PEFT writes a saved module's bias twice more, by the names of its own wrapper.
_WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.bias$")


@dataclass(frozen=True)
class Match:
    """What a step wants, by the names in its file, and what was found there.

    `more` is what is wrong beside their differences; `transposed` names what is stored so.
    """

    wanted: Mapping[str, Parameter]
    found: Mapping[str, StoredTensor]
    more: Sequence[str] = ()
    transposed: frozenset[str] = frozenset()

    def problems(self) -> list[str]:
        """All that is wrong; no weight is read."""
        differences = _differences(self.wanted, self.found, self.transposed)
        return list(dict.fromkeys([*self.more, *differences]))

    def arrays(self) -> Iterator[tuple[Parameter, Array]]:
        """Each parameter with what it shall be, where there are no problems.

        Raises CheckpointError where the file has changed.
        """
        for key, parameter in self.wanted.items():
            array = self.found[key].read(parameter.dtype)
            transposed = key in self.transposed
            yield parameter, np.ascontiguousarray(array.T) if transposed else array


def match_step(record: Record, step: int, folder: Path, foreign: ForeignStep | None) -> Match:
    """What a record's step wants, and what its folder holds.

    `foreign` is the step as another library wrote it, if one did. Raises CheckpointError where a
    file is missing or broken.
    """
    if foreign is not None:
        return _match_foreign(record, step, folder, foreign)
    origin, stored = folder / REPARAMETERIZATION, record.stored_parameters(step)
    transposed = record.transposed(step)
    # A step that adds nothing has no file; one that is there all the same is one too many.
    there = bool(stored) or (folder / WEIGHTS).exists()
    found, problems = without_base(record, step, step_tensors(folder) if there else {})
    problems += named_otherwise(found, PEFTS)
    if origin.exists() and (wanted := record.reparameterization(step)):
        problems += _differences(stored, found, transposed)
        beside = record.stored_beside(step)
        more = {key: tensor for key, tensor in found.items() if key in beside}
        return Match(wanted | beside, read_header(origin) | more, problems, transposed)
    if record.recipe[step].flattened() != record.recipe[step]:
        return Match(record.trained_parameters(step), found, problems, transposed)
    record.flatten(step)
    return Match(record.stored_parameters(step), found, problems, transposed)


def _match_foreign(record: Record, step: int, folder: Path, foreign: ForeignStep) -> Match:
    places, found = foreign_places(record, step, foreign), step_tensors(folder)
    return Match(
        {place.name: parameter for place, parameter in places.items()},
        found,
        named_otherwise(found, layout_of(folder)),
        frozenset(place.name for place in places if place.transposed),
    )


def step_tensors(folder: Path) -> dict[str, StoredTensor]:
    """What a step's weights file holds. Raises CheckpointError if it is missing or broken."""
    layout = layout_of(folder) or PEFTS
    stored = read_header(weights_file(folder, layout))
    if layout != PEFTS:
        return stored
    return {k: v for k, v in stored.items() if not _WRAPPED.search(k)}


def named_otherwise(found: Collection[str], layout: Layout | None) -> list[str]:
    """That tensors have the names of another layout than the settings are in, if they do."""
    whose = likeness(found)
    others = {f"an adapter of {other}" for other in LAYOUTS if other != layout}
    return [f"the tensors have the names of {whose}"] if whose in others else []


def wrong_dtypes(found: Mapping[str, StoredTensor]) -> list[str]:
    """Tensors that are not of floats."""
    return [
        f"wrong dtype: {key} is {tensor.dtype}, expected one of {', '.join(FLOATS)}"
        for key, tensor in found.items()
        if tensor.dtype not in FLOATS
    ]


def _differences(
    wanted: Mapping[str, Parameter], found: Mapping[str, StoredTensor], transposed: Collection[str]
) -> list[str]:
    shapes = {key: p.shape[::-1] if key in transposed else p.shape for key, p in wanted.items()}
    return [
        *mismatches(shapes, {key: tensor.shape for key, tensor in found.items()}),
        *wrong_dtypes({key: tensor for key, tensor in found.items() if key in wanted}),
    ]
