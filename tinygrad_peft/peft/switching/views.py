"""Views: transformers with other modules at their seams, which share all weights.

A forward pass runs a view and never looks at what may change meanwhile. The modules that hold
seams, such as blocks and attention, are copied shallowly; so is a wrapper around one of them.
Layers and their wrappers are the adapters' own, the same in every view.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from tinygrad_peft.nn import Module, Transformer
from tinygrad_peft.peft.recipes.record import Rewrite
from tinygrad_peft.peft.sites import Seam
from tinygrad_peft.peft.switching.per_row import modules_of_rows

__all__ = ["Composer", "Mixture", "View", "Views"]

LIMIT = 64  # views that are kept; each has a few small objects for every layer


class Mixture(NamedTuple):
    """The adapters of one pass: stacked, merged into plain modules, or one for each row."""

    kind: Literal["stacked", "merged", "per row"]
    names: tuple[str, ...]


class View(NamedTuple):
    """A transformer to run, the module at each seam, and modules that switch their mode at once.

    `watched` has the transformer and what stands at its seams, for each row where they differ: all
    modules below one of them are in the mode that it is in.
    """

    transformer: Transformer
    modules: Mapping[Seam, Module]
    watched: Sequence[Module]


class Composer:
    """Composes views of one transformer, whose bare modules are `base`."""

    def __init__(self, base: Mapping[Seam, Module]) -> None:
        self.seams: dict[int, list[Seam]] = {}  # by their owner's id
        for seam in base:
            self.seams.setdefault(id(seam.owner), []).append(seam)
        # Those whose module holds other seams, itself or below wrappers.
        self.deep = {seam for seam, module in base.items() if id(module) in self.seams}

    def learn(self, rewrites: Sequence[Rewrite]) -> None:
        """Find out which of an adapter's modules hold seams."""
        for rewrite in rewrites:
            if any(id(module) in self.seams for _, module in rewrite.after.named_modules()):
                self.deep.add(rewrite.seam)

    def view(self, model: Transformer, modules: Mapping[Seam, Module]) -> View:
        """Compose the view of `model` with these modules, one for every seam."""
        whole = self._copied(model, modules, {})
        assert isinstance(whole, Transformer)
        watched = [row for module in modules.values() for row in modules_of_rows(module)]
        return View(whole, modules, [whole, *watched])

    def _copied(
        self, module: Module, modules: Mapping[Seam, Module], made: dict[int, Module]
    ) -> Module:
        """Copy a module with the given ones at the seams in and below it; itself without any."""
        if id(module) in made:
            return made[id(module)]
        own = self.seams.get(id(module))
        if own is None:
            copies = {n: (m, self._copied(m, modules, made)) for n, m in module.children()}
            replaced = {name: new for name, (old, new) in copies.items() if new is not old}
        else:
            replaced = {seam.name: modules[seam] for seam in own}
            for seam in self.deep.intersection(own):
                replaced[seam.name] = self._copied(modules[seam], modules, made)
        made[id(module)] = module.with_children(replaced) if replaced else module
        return made[id(module)]


class Views:
    """The views that ran last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Mixture, View] = OrderedDict()

    def get(self, mixture: Mixture) -> View | None:
        """Return a view if it is kept."""
        view = self._kept.get(mixture)
        if view is not None:
            self._kept.move_to_end(mixture)
        return view

    def keep(self, mixture: Mixture, view: View) -> None:
        """Keep a view, in place of the oldest if there are too many."""
        self._kept[mixture] = view
        if len(self._kept) > LIMIT:
            self._kept.popitem(last=False)

    def drop(self, name: str) -> None:
        """Forget the views of an adapter."""
        for mixture in [each for each in self._kept if name in each.names]:
            del self._kept[mixture]

    def forget(self, mixture: Mixture) -> None:
        """Forget one view, if it is kept."""
        self._kept.pop(mixture, None)

    def clear(self) -> None:
        """Forget all views."""
        self._kept.clear()
