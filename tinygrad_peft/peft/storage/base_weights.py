"""The base's own weights in an adapter's file.

Hugging Face PEFT writes the whole embedding and output layer beside an adapter where it cannot
exclude that they were trained or resized (`save_embedding_layers`), and reads them over the base's.
Values that equal the base's are passed over. Others are what the adapter was trained with: copies
of the base's modules hold them, below whatever wraps these, and the base keeps its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.models.hf import FLOATS, StoredTensor
from tinygrad_peft.nn import Module, Parameter
from tinygrad_peft.nn.init import is_hollow
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.recipes.record import Record, Rewrite
from tinygrad_peft.peft.sites import Seam

__all__ = ["BaseWeights", "base_names", "base_note", "take_base_weights"]

# The base's module, in PEFT's wrappers of layers and of single tokens.
_WRAPPERS = ("", "base_layer.", "token_adapter.base_layer.")


@dataclass(frozen=True)
class BaseWeights:
    """The base's weights in a step's file.

    Attributes:
        equal: the names of those that equal the base's, or repeat another.
        misfits: the base's parameters whose tensors have other shapes or no floats, by name.
        transposed: the names of misfits that are stored transposed.
        notes: those that are used in place of the base's.
    """

    equal: frozenset[str]
    misfits: Mapping[str, Parameter]
    transposed: frozenset[str]
    notes: Sequence[str]


@dataclass(frozen=True, eq=False)
class _Place:
    """A parameter of the base, and the tensor in the file that stands for it."""

    seam: Seam
    module: Module
    name: str
    parameter: Parameter
    key: str
    stored: StoredTensor

    @property
    def transposed(self) -> bool:
        return self.seam.transposed and self.name == "weight"

    @property
    def fits(self) -> bool:
        shape = self.parameter.shape
        wanted = shape[::-1] if self.transposed else shape
        return self.stored.shape == wanted and self.stored.dtype in FLOATS

    @cached_property
    def apart(self) -> float | None:
        """The largest difference from the base's values; None for a base of shapes alone."""
        if is_hollow(self.parameter.data):
            return None
        array = self.read()
        if np.array_equal(array, self.parameter.data):
            return 0.0
        return float(np.abs(array - self.parameter.data).max())

    def read(self) -> Array:
        array = self.stored.read(self.parameter.dtype)
        return array.T if self.transposed else array

    def repeats(self, other: "_Place") -> bool:
        """Return True for the same values; False without reading, for a base of shapes alone."""
        return self.apart is not None and np.array_equal(self.read(), other.read())

    def note(self) -> str:
        return base_note(self.seam.path, self.name, self.apart)


def base_note(path: str, name: str, apart: float | None = None) -> str:
    """Return the note on a weight of the base in a file; `apart` from the model's, if known."""
    where = f"{path}: the adapter's file has the base's own {name}"
    if apart is None:
        return f"{where}, which is used where its values differ from the model's"
    return f"{where} with other values (by up to {apart:.2g}), which are used"


def take_base_weights(record: Record, step: int, found: Mapping[str, StoredTensor]) -> BaseWeights:
    """Add the base's weights in a step's file to the record, where their values are others.

    Reads the weights, except for a base of shapes alone. Raises PeftError where the base's module
    was replaced, such as by a quantised one.
    """
    wanted = record.stored_parameters(step)
    others = {key: tensor for key, tensor in found.items() if key not in wanted}
    places = list(_places(record, step, others))
    misfits = [place for place in places if not place.fits]
    if misfits:
        return BaseWeights(
            frozenset(place.key for place in places if place.fits),
            {place.key: place.parameter for place in misfits},
            frozenset(place.key for place in misfits if place.transposed),
            (),
        )
    taken = [place for place in places if place.apart != 0]
    for seam, copies in _copies(record, step, places, taken).items():
        _install(record, step, seam, copies)
    equal = frozenset(place.key for place in places if place.apart == 0)
    return BaseWeights(equal, {}, frozenset(), [place.note() for place in taken])


def base_names(record: Record, step: int) -> set[str]:
    """Return the names that the base's own weights may have in a step's file."""
    return {
        key
        for seam, module in _base_modules(record).items()
        for name, _ in module.own_parameters()
        for key in _keys(record.recipe[step], seam, name)
    }


def _keys(config: PeftConfig, seam: Seam, name: str) -> list[str]:
    form = config.file_format
    return [form.plain_key(seam.path, f"{wrapper}{name}") for wrapper in _WRAPPERS]


def _places(record: Record, step: int, found: Mapping[str, StoredTensor]) -> Iterator[_Place]:
    """Yield the parameters of the base that the file has tensors for."""
    for seam, module in _base_modules(record).items():
        for name, parameter in module.own_parameters():
            for key in _keys(record.recipe[step], seam, name):
                if key in found:
                    yield _Place(seam, module, name, parameter, key, found[key])


def _base_modules(record: Record) -> dict[Seam, Module]:
    """Return the base's module at each seam, whether the record is installed or not."""
    before = {rewrite.seam: rewrite.before for rewrite in reversed(record.rewrites)}
    return {seam: before.get(seam, seam.module) for seam in record.seams}


_Copy: TypeAlias = tuple[str, Parameter, str | None]  # name, copy, name in the file


def _copies(
    record: Record, step: int, places: Sequence[_Place], taken: Sequence[_Place]
) -> dict[Seam, list[_Copy]]:
    """Return the new parameters by seam: one for all places that share a weight of the base.

    A place that the file does not have takes part, as the weight itself changes in PEFT. Places
    with different values in the file are parted.
    """
    given = {(place.seam, place.name) for place in places}
    saved = {r.seam for r in record.rewrites if r.step == step and r.saved}
    first: dict[int, tuple[_Place, Parameter]] = {}
    copies: dict[Seam, list[_Copy]] = {}
    for place in taken:
        copy = Parameter(place.parameter.data, requires_grad=False)
        other, known = first.setdefault(id(place.parameter), (place, copy))
        copy = known if other is place or place.repeats(other) else copy
        copies.setdefault(place.seam, []).append((place.name, copy, place.key))
    for seam, module in _base_modules(record).items():
        for name, parameter in module.own_parameters():
            if id(parameter) in first and (seam, name) not in given and seam not in saved:
                copies.setdefault(seam, []).append((name, first[id(parameter)][1], None))
    return copies


def _install(record: Record, step: int, seam: Seam, copies: Sequence[_Copy]) -> None:
    """Put a copy of the base's module with these parameters below the rewrites of a seam."""
    old = {id(parameter) for parameter in record.parameters()}
    module = _base_modules(record)[seam]
    keys = {name: key for name, _, key in copies if key is not None}
    inner = module.with_own_parameters({name: copy for name, copy, _ in copies})
    added = {name: p for name, p, _ in copies if id(p) not in old}
    shared = {name: p for name, p, key in copies if id(p) in old and key is not None}
    own = [i for i, rewrite in enumerate(record.rewrites) if rewrite.seam is seam]
    config = record.recipe[step]
    taken = Rewrite(step, config, seam, module, inner, True, added, shared, keys)  # noqa: FBT003
    for i in own:
        rewrite = record.rewrites[i]
        after = _around(rewrite, inner)
        record.rewrites[i] = replace(rewrite, before=inner, after=after)
        inner = after
    record.rewrites.insert(min(own, default=len(record.rewrites)), taken)


def _around(rewrite: Rewrite, inner: Module) -> Module:
    """Return the module of a rewrite around, or in place of, another one of the base's kind."""
    if rewrite.wraps or not rewrite.plain:
        return rewrite.rewrapped(inner)
    others = {name: p for name, p in inner.own_parameters() if name not in rewrite.added}
    return rewrite.after.with_own_parameters(others)
