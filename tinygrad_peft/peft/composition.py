"""Applying a recipe to a model."""

from collections.abc import Sequence

from tinygrad_peft.errors import PeftError, PluginError, TargetError, listed, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Module, Parameter, Transformer
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.config import NamedTargetsConfig, PeftConfig, steps_of
from tinygrad_peft.peft.copies import trained_copy
from tinygrad_peft.peft.events import Draft
from tinygrad_peft.peft.methods import broken_plugins, methods_of
from tinygrad_peft.peft.record import Record, Rewrite, new_parameters
from tinygrad_peft.peft.sites import Seam, Start, capture_seams
from tinygrad_peft.peft.targets import Targets, find_targets

__all__ = ["apply_recipe", "checked_targets"]


def apply_recipe(
    model: Module,
    recipe: PeftConfig | Sequence[PeftConfig],
    host: Host,
    *,
    seed: int = 0,
    loading: bool = False,
    seams: Sequence[Seam] | None = None,
) -> Record:
    """Apply the steps of a recipe to `model` in place, the first being the innermost.

    All that the model had is frozen; what the steps add is trained. On any error the model is what
    it was before. `loading` says that the new weights will be overwritten by those of a folder;
    `seams` are the model's, if they are known.

    Raises:
        TargetError: entries that name no module, all of them, with the nearest names.
        PeftError: objections of plugins, a method that no plugin provides, or a step that did
            nothing.
    """
    steps = steps_of(recipe)
    seams = capture_seams(model) if seams is None else seams
    targets = checked_targets(model, steps, seams, host)
    record = Record(steps, tuple(targets))
    try:
        _freeze(model, record)
        for step, found in enumerate(targets):
            paths = found.paths
            named = tuple(seam.module for seam in seams if seam.path in paths)
            start = Start(model, seed, step, loading, named)
            _apply_step(record, seams, found, host, start)
        for rewrite in record.rewrites:
            rewrite.after.train(mode=model.training)
    except BaseException:
        record.undo()
        raise
    return record


def checked_targets(
    model: Module, recipe: Sequence[PeftConfig], seams: Sequence[Seam], host: Host
) -> list[Targets]:
    """The targets of each step, unless there is anything to object to.

    Raises what `apply_recipe` does, but for steps that only then turn out to do nothing.
    """
    _refuse_unknown(recipe, host)
    model_type = model.config.model_type if isinstance(model, Transformer) else ""
    targets = [find_targets(config, seams, model_type) for config in recipe]
    problems = [f"step {i}: {p}" for i, found in enumerate(targets) for p in found.problems]
    if problems:
        raise TargetError(f"the recipe does not fit the model:\n{listed(problems)}")
    draft = Draft(model, tuple(recipe), tuple(t.paths for t in targets))
    objections = [why for reasons in host.each(hookspecs.check_recipe, draft) for why in reasons]
    objections += _saved_late(seams, targets)
    if objections:
        raise PeftError(f"the recipe is refused:\n{listed(objections)}")
    for step, (config, found) in enumerate(zip(recipe, targets, strict=True)):
        if isinstance(config, NamedTargetsConfig) and config.adapts:
            fitting = {seam.path for seam in seams if isinstance(seam.module, config.adapts)}
            _refuse_idle(config, step, seams, found, fitting)
    return targets


def _refuse_unknown(recipe: Sequence[PeftConfig], host: Host) -> None:
    methods = methods_of(host)
    for config in recipe:
        name = config.peft_type.lower()
        if methods.get(name) is not type(config):
            raise PluginError(
                f"no registered plugin provides {type(config).__name__} ({name})"
                f"{nearest(name, methods)}{broken_plugins(host)}"
            )


def _saved_late(seams: Sequence[Seam], targets: Sequence[Targets]) -> list[str]:
    """Modules that a step would train whole, of which an earlier step has made something else."""
    weighty = {seam.path for seam in seams if any(True for _ in seam.module.own_parameters())}
    return [
        f"step {late}: modules_to_save: {path} is already taken by step {early}"
        for late, saving in enumerate(targets)
        for early in range(late)
        for path in sorted(weighty & saving.saved & (targets[early].paths | targets[early].saved))
    ]


def _freeze(model: Module, record: Record) -> None:
    """Let none of the base's weights be trained, and remember which were."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            record.unfrozen.append(parameter)
            parameter.requires_grad = False


def _apply_step(
    record: Record, seams: Sequence[Seam], targets: Targets, host: Host, start: Start
) -> None:
    step, named = start.step, targets.paths
    config = record.recipe[step]
    before_step = len(record.rewrites)
    for seam in seams:
        saved = seam.path in targets.saved
        if saved:
            after = trained_copy(seam.module, fresh=not start.loading)
        else:
            site = start.site(seam, is_target=seam.path in named)
            after = host.one(hookspecs.adapt_module, config, site)
        if after is None:
            continue
        added = _own_parameters(after, seam.module, record)
        record.rewrites.append(Rewrite(step, config, seam, seam.module, after, saved, added))
        seam.put(after)
    done = {rewrite.seam.path for rewrite in record.rewrites[before_step:]}
    _refuse_idle(config, step, seams, targets, done)


def _own_parameters(after: Module, before: Module, record: Record) -> dict[str, Parameter]:
    """What is new in `after` and nowhere before it: tied places may share what one of them adds."""
    old = {id(p) for p in record.parameters()}
    new = new_parameters(after, before)
    return {name: parameter for name, parameter in new.items() if id(parameter) not in old}


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
        why = "" if isinstance(config, NamedTargetsConfig) else ": the model has no place for it"
        raise PeftError(f"step {step}, {config.peft_type.lower()}, adapted nothing{why}")
