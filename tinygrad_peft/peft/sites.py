"""Seams and sites: where methods put their modules.

A seam is addressed by its owner and the owner's field, captured once, before the first method: then
the wrapping of `attn` moves nothing that a later method looks for, and every method sees the paths
of the original model. A site is a seam as one step of a recipe sees it.
"""

import types
import typing
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import numpy as np

from tinygrad_peft.errors import PeftError
from tinygrad_peft.models import checkpoint_path, is_transposed
from tinygrad_peft.nn import Init, Module, Skeleton, Transformer

__all__ = ["Common", "Seam", "Site", "Start", "capture_seams"]

T = TypeVar("T")


class Common:
    """What the places of one step share: made once, by the first that asks for its kind."""

    def __init__(self) -> None:
        self._made: dict[type, object] = {}

    def get(self, kind: type[T], make: Callable[[], T]) -> T:
        """What was made of that kind; `make` makes it if nothing was."""
        made = self._made.get(kind)
        if not isinstance(made, kind):
            made = self._made[kind] = make()
        return made


@dataclass(frozen=True, eq=False)
class Seam:
    """A place in a model: the field `name` of `owner`, at `path` in the checkpoint's names."""

    path: str
    owner: Module = field(repr=False)
    name: str
    layer: int | None  # the first number in the path
    is_head: bool = False  # the output layer of the whole model
    transposed: bool = False  # its weight is (in, out) in a checkpoint

    @property
    def module(self) -> Module:
        """What stands there now."""
        return self.owner.get_child(self.name)

    def put(self, module: Module) -> None:
        """Put `module` there.

        Raises PeftError if it is not what the owner's annotation asks for.
        """
        expected = _annotation(type(self.owner), self.name.partition(".")[0])
        if expected and not isinstance(module, expected):
            names = " or ".join(kind.__name__ for kind in expected)
            why = _missing(module, expected[0]) if len(expected) == 1 else ""
            raise PeftError(f"{self.path}: expected {names}, got {type(module).__name__}{why}")
        self.owner.set_child(self.name, module)


@dataclass(frozen=True)
class Site:
    """One seam in one step of a recipe, as `adapt_module` gets it.

    Attributes:
        path: the place in the checkpoint's names, such as "model.layers.0.self_attn.q_proj".
        slot: the field of its owner: "q_proj", "attn", "mlp", "embed_tokens", in every family.
        module: what stands there now: the base's layer, or an earlier step's.
        layer: the number of the layer, if it is in one.
        is_target: whether the config's targets name this place.
        init: draws the weights of this place: from the seed, the step and the path alone. While
            loading it gives arrays of the right shapes that take no memory and cannot be written.
        model: the whole model, to look at and not to change.
        loading: the weights will be read from a folder, so it does not matter where they start.
        targets: the modules that the config's targets name, as they were before this step.
        common: holds what the places of this step share, such as one projection for all of them.
    """

    path: str
    slot: str
    module: Module
    layer: int | None
    is_target: bool
    init: Init
    model: Module = field(repr=False)
    loading: bool = False
    targets: tuple[Module, ...] = field(default=(), repr=False)
    common: Common = field(default_factory=Common, repr=False)


def capture_seams(model: Module) -> tuple[Seam, ...]:
    """Every place in `model` where a module stands, parents first."""
    naming = _naming(model)
    seams = []
    for path, owner in model.named_modules():
        for name, _ in owner.children():
            full = naming(f"{path}.{name}" if path else name)
            layer = next((int(part) for part in full.split(".") if part.isdigit()), None)
            is_head = owner is model and name in ("lm_head", "classifier")
            transposed = isinstance(model, Transformer) and is_transposed(model.config, full)
            seams.append(Seam(full, owner, name, layer, is_head, transposed))
    return tuple(seams)


@dataclass(frozen=True)
class Start:
    """How one step of a recipe begins: what its sites have in common."""

    model: Module
    seed: int
    step: int
    loading: bool
    targets: tuple[Module, ...] = ()
    common: Common = field(default_factory=Common)

    def site(self, seam: Seam, *, is_target: bool) -> Site:
        """The seam as this step sees it."""
        weights = chain(seam.module.parameters(), self.model.parameters())
        dtype = next((p.dtype for p in weights), np.dtype(np.float32))
        # What a folder's weights will replace takes no memory, whatever size its settings ask for.
        kind = Skeleton if self.loading else Init
        init = kind((self.seed, self.step, zlib.crc32(seam.path.encode())), dtype)
        return Site(
            seam.path,
            seam.name,
            seam.module,
            seam.layer,
            is_target,
            init,
            self.model,
            self.loading,
            self.targets,
            self.common,
        )


def _naming(model: Module) -> Callable[[str], str]:
    if isinstance(model, Transformer):
        config = model.config
        return lambda path: checkpoint_path(config, path)
    return lambda path: path


def _missing(module: Module, expected: type) -> str:
    """Return which attributes of a protocol a module lacks, in brackets; "" for a plain class."""
    if typing.Protocol not in expected.__bases__:
        return ""
    methods = (name for name in vars(expected) if name == "__call__" or not name.startswith("_"))
    wanted = {*typing.get_type_hints(expected), *methods}
    missing = ", ".join(name for name in sorted(wanted) if not hasattr(module, name))
    return f" (no attribute {missing})" if missing else ""


def _annotation(owner: type[Module], name: str) -> tuple[type, ...]:
    """The classes and protocols that the owner's annotation of a field names."""
    hint = typing.get_type_hints(owner).get(name)
    if typing.get_origin(hint) is list:
        (hint,) = typing.get_args(hint)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    return tuple(k for k in kinds if isinstance(k, type) and k is not type(None))
