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
from tinygrad_peft.peft.storage.base_weights import base_names, take_base_weights
from tinygrad_peft.peft.storage.folder import StepFolder
from tinygrad_peft.peft.storage.foreign import foreign_places
from tinygrad_peft.peft.storage.layout import named_otherwise

__all__ = ["Match", "match_step", "own_tensors", "wrong_dtypes"]

# PEFT may write a saved module twice more, by the names of its own wrapper: the same weights
# again, and the base's.
_WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.")


@dataclass(frozen=True)
class Match:
    """The parameters of a step by their names in its file, and the tensors found there.

    `more` lists problems other than their differences; `transposed` names the tensors that are
    stored transposed; `notes` lists the base's weights that the file replaces.
    """

    wanted: Mapping[str, Parameter]
    found: Mapping[str, StoredTensor]
    more: Sequence[str] = ()
    transposed: frozenset[str] = frozenset()
    notes: Sequence[str] = ()

    def vocabularies(self, size: int) -> list[int]:
        """List the other vocabularies of the tensors that should have one of this size."""
        pairs = (
            (wanted, self.found[key].shape)
            for key, wanted in _shapes(self.wanted, self.transposed).items()
            if key in self.found and len(wanted) == len(self.found[key].shape)
        )
        apart = [[(w, g) for w, g in zip(*pair, strict=True) if w != g] for pair in pairs]
        return sorted({axes[0][1] for axes in apart if len(axes) == 1 and axes[0][0] == size})

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
    # A step that adds nothing should have no file: the tensors of one are unexpected.
    there = bool(record.stored_parameters(number)) or step.tensors is not None
    found = own_tensors(step) if there else {}
    again = record.repeated(number)
    found = {key: tensor for key, tensor in found.items() if key not in again}
    base = take_base_weights(record, number, found)
    found = {key: tensor for key, tensor in found.items() if key not in base.equal}
    transposed = record.transposed(number) | base.transposed
    named = named_otherwise(found, step.layout, step.layouts)
    if step.beside is not None and (wanted := record.reparameterization(number)):
        named += _differences(record.stored_parameters(number), found, transposed)
        beside = record.stored_plainly(number)
        found = {key: tensor for key, tensor in found.items() if key in beside}
        wanted, found = wanted | beside, {**step.beside, **found}
    elif record.recipe[number].flattened() != record.recipe[number]:
        wanted = record.trained_parameters(number)
    else:
        record.flatten(number)
        wanted = record.stored_parameters(number)
    return Match({**wanted, **base.misfits}, found, named, transposed, base.notes)


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
    return {name for each in weights for name in each(number)} | base_names(record, number)


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
    return [
        *mismatches(
            _shapes(wanted, transposed), {key: tensor.shape for key, tensor in found.items()}
        ),
        *wrong_dtypes({key: tensor for key, tensor in found.items() if key in wanted}),
    ]


def _shapes(
    wanted: Mapping[str, Parameter], transposed: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the parameters have in a file."""
    return {key: p.shape[::-1] if key in transposed else p.shape for key, p in wanted.items()}
