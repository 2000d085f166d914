"""Seams and sites: the places where methods install their modules.

A seam is an owner and the owner's field, captured once, before the first method. So wrapping `attn`
moves nothing that a later method looks for, and every method sees the paths of the original model.
A site is a seam as one step of a recipe sees it.
"""

import inspect
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
    """Objects shared by the sites of one step, each made by the first site that asks for it."""

    def __init__(self) -> None:
        self._made: dict[type, object] = {}

    def get(self, kind: type[T], make: Callable[[], T]) -> T:
        """Return the shared object of that kind, made by `make` on the first call."""
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
        """The module that is installed now."""
        return self.owner.get_child(self.name)

    def put(self, module: Module) -> None:
        """Install `module`.

        Raises PeftError unless it fits the owner's annotation and is called in the same way.
        """
        expected = _annotation(type(self.owner), self.name.partition(".")[0])
        if expected and not isinstance(module, expected):
            names = " or ".join(kind.__name__ for kind in expected)
            why = _missing(module, expected[0]) if len(expected) == 1 else ""
            raise PeftError(f"{self.path}: expected {names}, got {type(module).__name__}{why}")
        if expected and not any(_is_called_as(module, kind) for kind in expected):
            raise PeftError(
                f"{self.path}: expected a module called as {_call(expected[0])}, got "
                f"{type(module).__name__}, called as {_call(type(module))}"
            )
        self.owner.set_child(self.name, module)


@dataclass(frozen=True)
class Site:
    """One seam in one step of a recipe, as `adapt_module` gets it.

    Attributes:
        path: the path in the checkpoint's names, such as "model.layers.0.self_attn.q_proj".
        slot: the field of its owner, the same in every family: "q_proj", "attn", "mlp",
            "embed_tokens", or "blocks" for a whole layer.
        module: the module that is installed now: the base's layer, or an earlier step's.
        layer: the number of the layer, if it is in one.
        is_target: True if the config targets this site.
        init: initialises weights from the seed, the step and the path alone. While loading it gives
            read-only arrays of the right shapes that take no memory.
        model: the whole model, not to be changed.
        loading: True if the weights will be read from a folder, and their start does not matter.
        targets: the modules that the config targets, as they were before this step.
        common: objects that the sites of this step share, such as one projection for all of them.
        has_weights: False for a base of shapes alone (`Skeleton`), as while inspecting a folder:
            initial values that are computed from the base's weights are zero there.
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
    has_weights: bool = True


def capture_seams(model: Module) -> tuple[Seam, ...]:
    """List every seam of `model`, parents first."""
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
    """The start of one step of a recipe: what its sites have in common."""

    model: Module
    seed: int
    step: int
    loading: bool
    targets: tuple[Module, ...] = ()
    common: Common = field(default_factory=Common)
    has_weights: bool = True

    def site(self, seam: Seam, *, is_target: bool) -> Site:
        """Return the seam as this step sees it."""
        weights = chain(seam.module.parameters(), self.model.parameters())
        dtype = next((p.dtype for p in weights), np.dtype(np.float32))
        # Weights that a folder's will replace take no memory, whatever size its settings ask for.
        kind = Skeleton if self.loading else Init
        init = kind((self.seed, self.step, zlib.crc32(seam.path.encode())), dtype)
        return Site(
            seam.path,
            seam.name.partition(".")[0],
            seam.module,
            seam.layer,
            is_target,
            init,
            self.model,
            self.loading,
            self.targets,
            self.common,
            self.has_weights,
        )


def _naming(model: Module) -> Callable[[str], str]:
    if isinstance(model, Transformer):
        config = model.config
        return lambda path: checkpoint_path(config, path)
    return lambda path: path


def _missing(module: Module, expected: type) -> str:
    """Return the attributes of a protocol that a module lacks; "" for a plain class."""
    if typing.Protocol not in expected.__bases__:
        return ""
    methods = (name for name in vars(expected) if name == "__call__" or not name.startswith("_"))
    wanted = {*typing.get_type_hints(expected), *methods}
    missing = ", ".join(name for name in sorted(wanted) if not hasattr(module, name))
    return f" (no attribute {missing})" if missing else ""


def _annotation(owner: type[Module], name: str) -> tuple[type, ...]:
    """Return the classes and protocols in the owner's annotation of a field."""
    hint = typing.get_type_hints(owner).get(name)
    if typing.get_origin(hint) is list:
        (hint,) = typing.get_args(hint)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    return tuple(k for k in kinds if isinstance(k, type) and k is not type(None))


def _is_called_as(module: Module, kind: type) -> bool:
    """Return True if the module takes the arguments of a call of `kind`.

    (`isinstance` with a runtime protocol only looks for the name `__call__`.)
    """
    wanted, own = _signature(kind), _signature(type(module))
    if wanted is None or own is None:
        return wanted is None
    given = [p for p in wanted.parameters.values() if p.default is p.empty]
    try:
        own.bind(*given)
    except TypeError:
        return False
    return True


def _call(kind: type) -> str:
    signature = _signature(kind)
    if signature is None:
        return "nothing"
    return f"({', '.join(list(signature.parameters)[1:])})"


def _signature(kind: type) -> inspect.Signature | None:
    """Return the signature of a class's `__call__`, `self` included; None if it has none."""
    call = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)
    return inspect.signature(call) if inspect.isfunction(call) else None
