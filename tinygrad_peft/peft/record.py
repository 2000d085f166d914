"""The record of what applying a recipe did.

Trainable lists, saving, merging, removing and counting read the record, never a name. Undoing puts
back what stood there: bit-exact, no subtraction, no division.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from tinygrad_peft.errors import PeftError, PluginError
from tinygrad_peft.nn import Module, Parameter
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.sites import Seam
from tinygrad_peft.peft.targets import Targets

__all__ = ["Record", "Reparameterized", "Rewrite", "new_parameters", "stacked"]


@runtime_checkable
class Reparameterized(Protocol):
    """A module whose weights come out of others while it is trained, such as an MLP's."""

    def flattened(self) -> Module:
        """The same with the weights themselves: what is used, and what a file holds."""
        ...


@dataclass(frozen=True, eq=False)
class Rewrite:
    """One module that a step of a recipe put in the place of another.

    `saved` says that `modules_to_save` asked for it. `added` holds the parameters of `after` that
    neither `before` has nor an earlier rewrite added, by their names in `after`.
    """

    step: int
    config: PeftConfig
    seam: Seam
    before: Module
    after: Module
    saved: bool
    added: Mapping[str, Parameter]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.config.peft_type.lower()

    @property
    def wraps(self) -> bool:
        """Whether `after` has `before` within it."""
        return any(module is self.before for _, module in self.after.named_modules())

    @property
    def plain(self) -> bool:
        """Whether `after` is of the same kind as `before` with other weights, and no wrapper."""
        return type(self.after) is type(self.before) and not self.wraps

    @property
    def is_copy(self) -> bool:
        """Whether `after` is `before` with other weights, all of them its own."""
        old = {id(p) for p in self.before.parameters()}
        return self.plain and not any(id(p) in old for p in self.after.parameters())

    @property
    def grown(self) -> int:
        """How many elements there are more, with what was copied whole kept beside its copy."""
        if self.saved or self.is_copy:
            return count_elements(self.added.values())
        own = {id(p) for p in self.added.values()}
        new = new_parameters(self.after, self.before).values()
        elsewhere = count_elements(p for p in new if id(p) not in own)
        return self.after.count() - self.before.count() - elsewhere

    def around(self, inner: Module) -> Module:
        """`after` with `inner` in the place of `before`, sharing all its own weights.

        Raises PeftError if it wraps nothing, and so leaves no place for another module.
        """
        if inner is self.before:
            return self.after
        fields = [name for name, value in vars(self.after).items() if value is self.before]
        if not fields:
            kind = type(self.after).__name__
            raise PeftError(
                f"{self.seam.path}: {kind} takes the place of what stands there, and wraps nothing"
            )
        twin = copy.copy(self.after)
        for name in fields:
            setattr(twin, name, inner)
        return twin

    def flattened(self) -> "Rewrite":
        """The same with its weights themselves, if they come out of others."""
        if not isinstance(self.after, Reparameterized):
            return self
        after = self.after.flattened()
        return replace(self, after=after, added=new_parameters(after, self.before))


@dataclass(eq=False)
class Record:
    """All that applying a recipe did, in the order in which it was done."""

    recipe: tuple[PeftConfig, ...]
    targets: tuple[Targets, ...]  # of each step
    rewrites: list[Rewrite] = field(default_factory=list)
    unfrozen: list[Parameter] = field(default_factory=list)  # base weights that were trained before

    def undo(self) -> None:
        """Put back what stood there, the last first; the base's weights are trained as before."""
        self.take_off()
        self.thaw()

    def take_off(self) -> None:
        """Put back what stood there, the last first."""
        for rewrite in reversed(self.rewrites):
            rewrite.seam.owner.set_child(rewrite.seam.name, rewrite.before)

    def thaw(self) -> None:
        """Let the base's weights be trained as before."""
        for parameter in self.unfrozen:
            parameter.requires_grad = True

    def recipe_as_trained(self) -> tuple[PeftConfig, ...]:
        """Return the recipe with the sizes that training left (`PeftConfig.as_trained`)."""
        return tuple(
            config.as_trained({r.seam.path: r.after for r in self._own(step) if not r.saved})
            for step, config in enumerate(self.recipe)
        )

    def parameters(self) -> list[Parameter]:
        """All that the steps added."""
        return [p for rewrite in self.rewrites for p in rewrite.added.values()]

    def named_parameters(self, step: int) -> dict[str, Parameter]:
        """What one step added, by path in the checkpoint's names."""
        return {
            f"{rewrite.seam.path}.{name}": parameter
            for rewrite in self.rewrites
            if rewrite.step == step
            for name, parameter in rewrite.added.items()
        }

    def placed_parameters(self, step: int) -> list[tuple[str, str, Parameter]]:
        """What a file holds of one step: each weight's place, and its name in what stands there."""
        return [
            (rewrite.seam.path, name, parameter)
            for rewrite in (r.flattened() for r in self._own(step))
            for name, parameter in rewrite.added.items()
        ]

    def stored_parameters(self, step: int) -> dict[str, Parameter]:
        """What a file holds of one step, by the names there."""
        return self._stored([r.flattened() for r in self._own(step)])

    def trained_parameters(self, step: int) -> dict[str, Parameter]:
        """What one step trains, by its names in a file; never more than it added."""
        return {n: p for n, p in self._stored(self._own(step)).items() if p.requires_grad}

    def reparameterization(self, step: int) -> dict[str, Parameter]:
        """The weights that those of one step come out of, by their names in a file."""
        return self._stored([r for r in self._own(step) if isinstance(r.after, Reparameterized)])

    def stored_beside(self, step: int) -> dict[str, Parameter]:
        """What a file holds of one step beside the weights that come out of others."""
        return self._stored(
            [r for r in self._own(step) if not isinstance(r.after, Reparameterized)]
        )

    def transposed(self, step: int) -> frozenset[str]:
        """What of one step a file holds transposed: whole weights that a checkpoint keeps so."""
        return frozenset(
            PeftConfig.stored_name(rewrite.config, rewrite.seam.path, "weight")
            for rewrite in self._own(step)
            if rewrite.saved and rewrite.seam.transposed
        )

    def flatten(self, step: int) -> None:
        """Let one step have its weights themselves, and not what they come out of."""
        self.rewrites = [r.flattened() if r.step == step else r for r in self.rewrites]

    def _own(self, step: int) -> list[Rewrite]:
        return [r for r in self.rewrites if r.step == step]

    def _stored(self, rewrites: Iterable[Rewrite]) -> dict[str, Parameter]:
        named: dict[str, Parameter] = {}
        for rewrite in rewrites:
            config, path = rewrite.config, rewrite.seam.path
            # What is saved whole has the checkpoint's names, whatever the method's are.
            stored = PeftConfig.stored_name if rewrite.saved else type(config).stored_name
            for name, parameter in rewrite.added.items():
                key = stored(config, path, name)
                if key in named:
                    raise PluginError(f"{rewrite.method} calls two weights {key!r} in a file")
                named[key] = parameter
        return named


def new_parameters(after: Module, before: Module) -> dict[str, Parameter]:
    """The parameters of `after` that `before` does not have, by their names in `after`."""
    old = {id(p) for p in before.parameters()}
    return {name: p for name, p in after.named_parameters() if id(p) not in old}


def stacked(base: Module, rewrites: Iterable[Rewrite]) -> Module:
    """The rewrites one around another, the first around `base`.

    Raises PeftError where one of them would replace what another has put there.
    """
    module = base
    for rewrite in rewrites:
        module = rewrite.around(module)
    return module
