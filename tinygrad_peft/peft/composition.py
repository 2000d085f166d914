"""Applying a recipe, and the record of what was done.

Trainable lists, saving, merging, removing and counting read the record, never a name. Undoing puts
back what stood there: bit-exact, no subtraction, no division.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tinygrad_peft.errors import PeftError, PluginError, TargetError, listed, nearest
from tinygrad_peft.nn import Module, Parameter, Transformer
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.config import PeftConfig, TargetedConfig
from tinygrad_peft.peft.events import Applied, Draft
from tinygrad_peft.peft.host import Host
from tinygrad_peft.peft.sites import Seam, capture_seams, site_of
from tinygrad_peft.peft.targets import Targets, find_targets

__all__ = ["Record", "Rewrite", "apply_recipe"]


@dataclass(frozen=True, eq=False)
class Rewrite:
    """One module that a step of a recipe put in the place of another.

    `added` holds the parameters of `after` that `before` does not have, by their names in `after`.
    `plain` says that `after` is the base's own kind of module with weights of its own, and no
    method's.
    """

    step: int
    seam: Seam
    before: Module
    after: Module
    plain: bool
    added: Mapping[str, Parameter]


@dataclass(eq=False)
class Record:
    """All that applying a recipe did, in the order in which it was done."""

    recipe: tuple[PeftConfig, ...]
    rewrites: list[Rewrite] = field(default_factory=list)
    unfrozen: list[Parameter] = field(default_factory=list)  # base weights that were trained before

    def undo(self) -> None:
        """Put back what stood there, the last first; the base's weights are trained as before."""
        for rewrite in reversed(self.rewrites):
            rewrite.seam.owner.set_child(rewrite.seam.name, rewrite.before)
        for parameter in self.unfrozen:
            parameter.requires_grad = True

    def stacks(self) -> Iterator[tuple[Seam, list[Rewrite]]]:
        """The rewrites of each seam, the innermost first."""
        by_seam: dict[Seam, list[Rewrite]] = {}
        for rewrite in self.rewrites:
            by_seam.setdefault(rewrite.seam, []).append(rewrite)
        yield from by_seam.items()

    def named_parameters(self, step: int) -> dict[str, Parameter]:
        """What one step added, by path in the checkpoint's names."""
        return {
            f"{rewrite.seam.path}.{name}": parameter
            for rewrite in self.rewrites
            if rewrite.step == step
            for name, parameter in rewrite.added.items()
        }


def apply_recipe(
    model: Module, recipe: Sequence[PeftConfig], host: Host, *, seed: int = 0
) -> Record:
    """Apply the steps of a recipe to `model` in place, the first being the innermost.

    All that the model had is frozen; what the steps add is trained. On any error the model is what
    it was before.

    Raises:
        TargetError: entries that name no module, all of them, with the nearest names.
        PeftError: objections of plugins, a method that no plugin provides, or a step that did
            nothing.
    """
    seams = capture_seams(model)
    record = Record(tuple(recipe))
    targets = _check(model, record.recipe, seams, host)
    for parameter in model.parameters():
        if parameter.requires_grad:
            record.unfrozen.append(parameter)
            parameter.requires_grad = False
    try:
        for step in range(len(record.recipe)):
            _apply_step(record, step, seams, targets[step], host, seed)
    except BaseException:
        record.undo()
        raise
    for rewrite in record.rewrites:
        rewrite.after.train(mode=model.training)
    paths = tuple(rewrite.seam.path for rewrite in record.rewrites)
    host.each(hookspecs.recipe_applied, Applied(model, record.recipe, paths))
    return record


def _check(
    model: Module, recipe: tuple[PeftConfig, ...], seams: Sequence[Seam], host: Host
) -> list[Targets]:
    """The targets of each step, unless there is anything to object to."""
    if not recipe:
        raise PeftError("a recipe needs at least one step")
    methods = host.methods()
    for config in recipe:
        name = config.peft_type.lower()
        if methods.get(name) is not type(config):
            raise PluginError(
                f"no registered plugin provides {type(config).__name__} ({name})"
                f"{nearest(name, methods)}"
            )
    model_type = model.config.model_type if isinstance(model, Transformer) else ""
    targets = [find_targets(config, seams, model_type) for config in recipe]
    absent = [f"step {i}: {p}" for i, found in enumerate(targets) for p in found.problems]
    if absent:
        raise TargetError(f"the recipe does not fit the model:\n{listed(absent)}")
    draft = Draft(model, recipe, tuple(t.paths for t in targets))
    objections = [why for reasons in host.each(hookspecs.check_recipe, draft) for why in reasons]
    if objections:
        raise PeftError(f"the recipe is refused:\n{listed(objections)}")
    return targets


def _apply_step(
    record: Record, step: int, seams: Sequence[Seam], targets: Targets, host: Host, seed: int
) -> None:
    config, named = record.recipe[step], targets.paths
    before_step = len(record.rewrites)
    for seam in seams:
        before = seam.module
        if seam.path in targets.saved:
            after = _trainable_copy(seam)
        else:
            site = site_of(seam, seed=seed, step=step, is_target=seam.path in named)
            after = host.one(hookspecs.adapt_module, site, config)
        if after is None:
            continue
        old = {id(p) for p in before.parameters()}
        added = {name: p for name, p in after.named_parameters() if id(p) not in old}
        plain = seam.path in targets.saved
        record.rewrites.append(Rewrite(step, seam, before, after, plain, added))
        seam.put(after)
    done = {rewrite.seam.path for rewrite in record.rewrites[before_step:]}
    _refuse_idle(config, step, seams, targets, done)


def _refuse_idle(
    config: PeftConfig, step: int, seams: Sequence[Seam], targets: Targets, done: set[str]
) -> None:
    """Raise if the step did nothing, or if one of its entries named modules that none can adapt."""
    kinds = {seam.path: type(seam.module).__name__ for seam in seams}
    idle = [
        f"{entry!r} names {len(paths)} modules ({kinds[min(paths)]}) that it cannot adapt"
        for entry, paths in targets.by_entry.items()
        if not paths & done
    ]
    if idle:
        raise TargetError(f"step {step}, {config.peft_type.lower()}:\n{listed(idle)}")
    if not done:
        why = "" if isinstance(config, TargetedConfig) else ": the model has no place for it"
        raise PeftError(f"step {step}, {config.peft_type.lower()}, adapted nothing{why}")


def _trainable_copy(seam: Seam) -> Module | None:
    """The module with weights of its own that are trained; None if it has none itself."""
    own = dict(seam.module.own_parameters())
    if not own:
        return None
    twin = copy.copy(seam.module)
    for name, parameter in own.items():
        setattr(twin, name, Parameter(parameter.data.copy()))
    return twin
