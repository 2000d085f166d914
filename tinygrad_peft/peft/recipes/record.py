"""The record of applying a recipe.

Trainable lists, saving, merging, removing and counting read the record, never a name. Undoing puts
the former modules back: bit-exact, no subtraction, no division.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from tinygrad_peft.errors import PeftError, PluginError
from tinygrad_peft.nn import Module, Parameter
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.recipes.targets import Targets
from tinygrad_peft.peft.sites import Seam

__all__ = ["Record", "Reparameterized", "Rewrite", "new_parameters", "stacked"]


@runtime_checkable
class Reparameterized(Protocol):
    """A module whose weights are computed from others in training, such as by an MLP."""

    def flattened(self) -> Module:
        """Return a module with the computed weights themselves, as used and as stored in files."""
        ...


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A module that a step of a recipe replaced by another.

    `saved`: it is a copy for `modules_to_save`, or for a file's own weights of the base. `added`
    holds the parameters of `after` that are neither in `before` nor added by an earlier rewrite, by
    their names in `after`. `shared` holds the saved ones that an earlier rewrite of the step added.
    `keys` are names in a file, for parameters that have others there than usual.
    """

    step: int
    config: PeftConfig
    seam: Seam
    before: Module
    after: Module
    saved: bool
    added: Mapping[str, Parameter]
    shared: Mapping[str, Parameter] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method's name."""
        return self.config.peft_type.lower()

    @property
    def wraps(self) -> bool:
        """True if `after` contains `before`."""
        return any(module is self.before for _, module in self.after.named_modules())

    @property
    def plain(self) -> bool:
        """True if `after` is of the class of `before`, with other weights, and does not wrap it."""
        return type(self.after) is type(self.before) and not self.wraps

    @property
    def is_copy(self) -> bool:
        """True if `after` is `before` with other weights, none of them shared."""
        old = {id(p) for p in self.before.parameters()}
        return self.plain and not any(id(p) in old for p in self.after.parameters())

    @property
    def extra_elements(self) -> int:
        """The number of elements added to the base's; a copied module counts beside its copy."""
        if self.saved or self.is_copy:
            return count_elements(self.added.values())
        own = {id(p) for p in self.added.values()}
        new = new_parameters(self.after, self.before).values()
        elsewhere = count_elements(p for p in new if id(p) not in own)
        return self.after.count() - self.before.count() - elsewhere

    def key(self, name: str) -> str:
        """Return the name in a file of one of its parameters."""
        form, path = self.config.file_format, self.seam.path
        if name in self.keys:
            return self.keys[name]
        # Modules saved whole have the checkpoint's names, whatever the method's names are.
        return form.plain_key(path, name) if self.saved else form.key(path, name)

    def rewrapped(self, inner: Module) -> Module:
        """Return `after` with `inner` in place of `before`, sharing its own weights.

        Raises PeftError if `after` does not wrap `before`.
        """
        if inner is self.before:
            return self.after
        fields = [name for name, value in vars(self.after).items() if value is self.before]
        if not fields:
            kind = type(self.after).__name__
            raise PeftError(
                f"{self.seam.path}: {kind} replaces the module there instead of wrapping it"
            )
        twin = copy.copy(self.after)
        for name in fields:
            setattr(twin, name, inner)
        return twin

    def flattened(self) -> "Rewrite":
        """Return the rewrite with its computed weights, if it is reparameterised."""
        if not isinstance(self.after, Reparameterized):
            return self
        after = self.after.flattened()
        return replace(self, after=after, added=new_parameters(after, self.before))


@dataclass(eq=False)
class Record:
    """The rewrites of a recipe that was applied, in order."""

    recipe: tuple[PeftConfig, ...]
    targets: tuple[Targets, ...]  # of each step
    seams: tuple[Seam, ...] = ()  # of the whole model
    rewrites: list[Rewrite] = field(default_factory=list)
    unfrozen: list[Parameter] = field(
        default_factory=list
    )  # base weights that were trainable before

    def undo(self) -> None:
        """Uninstall the rewrites, and make the base's weights trainable as before."""
        self.uninstall()
        self.unfreeze_base()

    def uninstall(self) -> None:
        """Put the former modules back, the last first."""
        for rewrite in reversed(self.rewrites):
            rewrite.seam.owner.set_child(rewrite.seam.name, rewrite.before)

    def unfreeze_base(self) -> None:
        """Make the base's weights trainable as before."""
        for parameter in self.unfrozen:
            parameter.requires_grad = True

    def recipe_as_trained(self) -> tuple[PeftConfig, ...]:
        """Return the recipe with the trained sizes (`PeftConfig.as_trained`)."""
        return tuple(
            config.as_trained({r.seam.path: r.after for r in self._own(step) if not r.saved})
            for step, config in enumerate(self.recipe)
        )

    def parameters(self) -> list[Parameter]:
        """List the parameters that the steps added."""
        return [p for rewrite in self.rewrites for p in rewrite.added.values()]

    def named_parameters(self, step: int) -> dict[str, Parameter]:
        """Return one step's parameters, by path in the checkpoint's names."""
        return {
            f"{rewrite.seam.path}.{name}": parameter
            for rewrite in self.rewrites
            if rewrite.step == step
            for name, parameter in rewrite.added.items()
        }

    def parameters_by_path(self, step: int) -> list[tuple[str, str, Parameter]]:
        """List one step's stored parameters: (path, name in the module, parameter)."""
        return [
            (rewrite.seam.path, name, parameter)
            for rewrite in (r.flattened() for r in self._own(step))
            for name, parameter in rewrite.added.items()
        ]

    def stored_parameters(self, step: int) -> dict[str, Parameter]:
        """Return one step's stored parameters, by their names in the file."""
        return self._stored([r.flattened() for r in self._own(step)])

    def trained_parameters(self, step: int) -> dict[str, Parameter]:
        """Return the trained ones of one step's parameters, by their names in a file."""
        return {n: p for n, p in self._stored(self._own(step)).items() if p.requires_grad}

    def reparameterization(self, step: int) -> dict[str, Parameter]:
        """Return the weights that one step's are computed from, by their names in a file."""
        return self._stored([r for r in self._own(step) if isinstance(r.after, Reparameterized)])

    def stored_plainly(self, step: int) -> dict[str, Parameter]:
        """Return one step's parameters that are not reparameterised, by their names in the file."""
        return self._stored(
            [r for r in self._own(step) if not isinstance(r.after, Reparameterized)]
        )

    def repeated(self, step: int) -> set[str]:
        """Return the names that one step's shared parameters would have at their other places."""
        added = {id(parameter) for parameter in self.parameters()}
        names = {
            rewrite.key(name)
            for rewrite in self._own(step)
            for name, parameter in new_parameters(rewrite.after, rewrite.before).items()
            if id(parameter) in added
        }
        return names - self.stored_parameters(step).keys()

    def transposed(self, step: int) -> frozenset[str]:
        """Return the names of one step's weights that files store transposed, as checkpoints do."""
        return frozenset(
            rewrite.key("weight")
            for rewrite in self._own(step)
            if rewrite.saved and rewrite.seam.transposed
        )

    def flatten(self, step: int) -> None:
        """Replace one step's reparameterised weights by the computed ones."""
        self.rewrites = [r.flattened() if r.step == step else r for r in self.rewrites]

    def _own(self, step: int) -> list[Rewrite]:
        return [r for r in self.rewrites if r.step == step]

    def _stored(self, rewrites: Iterable[Rewrite]) -> dict[str, Parameter]:
        named: dict[str, Parameter] = {}
        for rewrite in rewrites:
            for name, parameter in {**rewrite.added, **rewrite.shared}.items():
                key = rewrite.key(name)
                if key in named:
                    raise PluginError(
                        f"{rewrite.method}: expected one weight named {key!r} in a file, got two"
                    )
                named[key] = parameter
        return named


def new_parameters(after: Module, before: Module) -> dict[str, Parameter]:
    """Return the parameters of `after` that `before` does not have, by their names in `after`."""
    old = {id(p) for p in before.parameters()}
    return {name: p for name, p in after.named_parameters() if id(p) not in old}


def stacked(base: Module, rewrites: Iterable[Rewrite]) -> Module:
    """Wrap `base` in the first rewrite, and each rewrite in the next.

    Raises PeftError where one of them would replace another instead of wrapping it.
    """
    module = base
    for rewrite in rewrites:
        module = rewrite.rewrapped(module)
    return module
