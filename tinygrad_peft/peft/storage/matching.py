"""Matching a step's parameters with the tensors in its folder."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models import equal_names
from tinygrad_peft.models.hf.safetensors import FLOATS, StoredTensor
from tinygrad_peft.nn import Parameter
from tinygrad_peft.nn.module import mismatches
from tinygrad_peft.peft.configs.file_format import PREFIX
from tinygrad_peft.peft.hook_types import ForeignStep
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.storage.base_weights import base_weights, without_base
from tinygrad_peft.peft.storage.folder import StepFolder
from tinygrad_peft.peft.storage.foreign import foreign_places
from tinygrad_peft.peft.storage.layout import named_otherwise

__all__ = ["Match", "match_step", "own_tensors", "wrong_dtypes"]

# With bias="all" PEFT writes a saved module's bias twice more, by the names of its own wrapper.
_WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.bias$")


@dataclass(frozen=True)
class Match:
    """The parameters of a step by their names in its file, and the tensors found there.

    `more` lists problems other than their differences; `transposed` names the tensors that are
    stored transposed.
    """

    wanted: Mapping[str, Parameter]
    found: Mapping[str, StoredTensor]
    more: Sequence[str] = ()
    transposed: frozenset[str] = frozenset()

    def problems(self) -> list[str]:
        """List every mismatch. Reads no weights."""
        differences = _differences(self.wanted, self.found, self.transposed)
        return list(dict.fromkeys([*self.more, *differences]))

    def arrays(self) -> Iterator[tuple[str, Parameter, Array]]:
        """Yield each tensor's name, parameter and array, for a match without problems.

        Opens each file once.

        Raises CheckpointError if a file has changed.
        """
        with ExitStack() as stack:
            try:
                files = {
                    path: stack.enter_context(path.open("rb"))
                    for path in {self.found[key].file for key in self.wanted}
                }
            except OSError as error:
                where = f"{error.filename} cannot be read"
                raise CheckpointError(f"{where}: {error.strerror}") from error
            for key, parameter in self.wanted.items():
                stored = self.found[key]
                array = stored.read(parameter.dtype, files[stored.file])
                transposed = key in self.transposed
                yield key, parameter, np.ascontiguousarray(array.T) if transposed else array


def match_step(record: Record, number: int, step: StepFolder, foreign: ForeignStep | None) -> Match:
    """Match a record's step with the tensors in its folder.

    `foreign` is the foreign step, if another library wrote it. Raises CheckpointError for missing
    weights.
    """
    if foreign is not None:
        return _match_foreign(record, number, step, foreign)
    step = _named_as(step, _names(record, number))
    stored, transposed = record.stored_parameters(number), record.transposed(number)
    # A step that adds nothing should have no file: the tensors of one are unexpected.
    there = bool(stored) or step.tensors is not None
    found, problems = without_base(record, number, own_tensors(step) if there else {})
    problems += named_otherwise(found, step.layout, step.layouts)
    if step.beside is not None and (wanted := record.reparameterization(number)):
        problems += _differences(stored, found, transposed)
        beside = record.stored_plainly(number)
        more = {key: tensor for key, tensor in found.items() if key in beside}
        return Match(wanted | beside, {**step.beside, **more}, problems, transposed)
    if record.recipe[number].flattened() != record.recipe[number]:
        return Match(record.trained_parameters(number), found, problems, transposed)
    record.flatten(number)
    return Match(record.stored_parameters(number), found, problems, transposed)


def _match_foreign(record: Record, number: int, step: StepFolder, foreign: ForeignStep) -> Match:
    places, found = foreign_places(record, number, foreign), step.weights()
    return Match(
        {place.name: parameter for place, parameter in places.items()},
        found,
        named_otherwise(found, step.layout, step.layouts),
        frozenset(place.name for place in places if place.transposed),
    )


def _names(record: Record, number: int) -> set[str]:
    """Return the names that tensors of a step may have in its file."""
    weights = (record.stored_parameters, record.trained_parameters, record.reparameterization)
    return {name for each in weights for name in each(number)} | {*base_weights(record, number)}


def _named_as(step: StepFolder, names: Collection[str]) -> StepFolder:
    """Return the step with its tensors under `names`, where those are the same places.

    Another class of the family was adapted then: its paths differ in the family's prefix.
    """
    others = {
        f"{PREFIX}.{other}": name
        for name in names
        if name.startswith(f"{PREFIX}.")
        for other in equal_names(name.removeprefix(f"{PREFIX}."))[1:]
    }

    def renamed(found: Mapping[str, StoredTensor] | None) -> dict[str, StoredTensor] | None:
        if found is None:
            return None
        free = {other: name for other, name in others.items() if name not in found}
        return {free.get(key, key): tensor for key, tensor in found.items()}

    return replace(step, tensors=renamed(step.tensors), beside=renamed(step.beside))


def own_tensors(step: StepFolder) -> dict[str, StoredTensor]:
    """Return a step's tensors without PEFT's copies. Raises CheckpointError if there is no file."""
    return {k: v for k, v in step.weights().items() if not _WRAPPED.search(k)}


def wrong_dtypes(found: Mapping[str, StoredTensor]) -> list[str]:
    """List the tensors whose dtype is not a float."""
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
