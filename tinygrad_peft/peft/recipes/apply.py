"""Applying a recipe to a model."""

from collections.abc import Sequence

from tinygrad_peft.errors import PeftError, PluginError, TargetError, listed, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Module, Parameter, Transformer
from tinygrad_peft.nn.init import is_hollow
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.configs.base import PeftConfig, steps_of
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig
from tinygrad_peft.peft.hook_types import Draft
from tinygrad_peft.peft.methods import broken_plugins, methods_of
from tinygrad_peft.peft.recipes.record import Record, Rewrite, new_parameters
from tinygrad_peft.peft.recipes.size import oversized
from tinygrad_peft.peft.recipes.targets import Targets, find_targets
from tinygrad_peft.peft.recipes.trained_copy import trained_copy
from tinygrad_peft.peft.sites import Seam, Start, capture_seams

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

    The model's own weights are frozen; the weights that the steps add are trained. The model is
    unchanged on any error. `loading`: a folder's weights will overwrite the new ones. `seams`: the
    model's seams, if already captured.

    Raises:
        TargetError: every target that matches no module, with the nearest names.
        PluginError: a plugin's answer is not a new module, or hides parameters.
        PeftError: objections of plugins, a method that no plugin provides, or a step that adapted
            nothing.
    """
    steps = steps_of(recipe)
    seams = capture_seams(model) if seams is None else seams
    targets = checked_targets(model, steps, seams, host, loading=loading)
    record = Record(steps, tuple(targets), tuple(seams))
    has_weights = not all(is_hollow(parameter.data) for parameter in model.parameters())
    try:
        _freeze(model, record)
        for step, found in enumerate(targets):
            paths = found.paths
            named = tuple(seam.module for seam in seams if seam.path in paths)
            start = Start(model, seed, step, loading, named, has_weights=has_weights)
            _apply_step(record, seams, found, host, start)
        for rewrite in record.rewrites:
            rewrite.after.train(mode=model.training)
    except BaseException:
        record.undo()
        raise
    return record


def checked_targets(
    model: Module,
    recipe: Sequence[PeftConfig],
    seams: Sequence[Seam],
    host: Host,
    *,
    loading: bool = False,
) -> list[Targets]:
    """Return the targets of each step after all checks that need no change to the model.

    Raises the errors of `apply_recipe`, except where only applying a step shows that it adapts
    nothing.
    """
    _refuse_unknown(recipe, host)
    model_type = model.config.model_type if isinstance(model, Transformer) else ""
    targets = [find_targets(each, seams, model_type, loading=loading) for each in recipe]
    problems = [f"step {i}: {p}" for i, found in enumerate(targets) for p in found.problems]
    if problems:
        raise TargetError(f"the recipe does not fit the model:\n{listed(problems)}")
    draft = Draft(model, tuple(recipe), tuple(t.paths for t in targets), loading)
    objections = [why for reasons in host.each(hookspecs.check_recipe, draft) for why in reasons]
    objections += [*_saved_late(seams, targets), *_lost(model, seams, targets)]
    # On loading too: a projection of a huge width is computed before its file is compared.
    if isinstance(model, Transformer) and not objections:
        objections += oversized(model, recipe, targets, seams, host)
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
    """List modules that a step would train whole after an earlier step has replaced them."""
    weighty = {seam.path for seam in seams if any(True for _ in seam.module.own_parameters())}
    return [
        f"step {late}: modules_to_save: {path} is already taken by step {early}"
        for late, saving in enumerate(targets)
        for early in range(late)
        for path in sorted(weighty & saving.saved & (targets[early].paths | targets[early].saved))
    ]


def _lost(model: Module, seams: Sequence[Seam], targets: Sequence[Targets]) -> list[str]:
    """List the rest of a new head whose parts `modules_to_save` names: nothing would keep it."""
    new = model.new_modules if isinstance(model, Transformer) else ()
    paths = {seam.path for seam in seams if seam.owner is model and seam.name in new}
    saved = frozenset[str]().union(*(found.saved for found in targets))
    if not paths & saved:
        return []
    return [
        f"modules_to_save: {path} is missing: it is as new as the rest of the head"
        for path in sorted(paths - saved)
    ]


def _freeze(model: Module, record: Record) -> None:
    """Freeze the base's weights, and record which were trainable."""
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
    copies: dict[int, Parameter] | None = {} if config.keeps_tied else None
    for seam in seams:
        saved = seam.path in targets.saved
        if saved:
            after = trained_copy(seam.module, fresh=not start.loading, copies=copies)
        else:
            site = start.site(seam, is_target=seam.path in named)
            after = host.one(hookspecs.adapt_module, config, site)
        if after is None:
            continue
        _refuse_hidden(after, seam, config, start.model)
        added, shared = _own_parameters(after, seam.module, record)
        shared = shared if saved else {}
        record.rewrites.append(
            Rewrite(step, config, seam, seam.module, after, saved, added, shared)
        )
        seam.put(after)
    done = {rewrite.seam.path for rewrite in record.rewrites[before_step:]}
    _refuse_idle(config, step, seams, targets, done)


def _own_parameters(
    after: Module, before: Module, record: Record
) -> tuple[dict[str, Parameter], dict[str, Parameter]]:
    """Return the parameters that first appear in `after`, and those that are only added to it.

    Tied modules may share added ones.
    """
    old = {id(p) for p in record.parameters()}
    new = new_parameters(after, before)
    own = {name: parameter for name, parameter in new.items() if id(parameter) not in old}
    return own, {name: parameter for name, parameter in new.items() if name not in own}


def _refuse_hidden(after: Module, seam: Seam, config: PeftConfig, model: Module) -> None:
    """Raise if an answer holds parameters outside its tree of modules."""
    if not after.hidden_parameters():
        return
    if hidden := after.hidden_parameters(known=model.parameters()):
        raise PluginError(
            f"{config.peft_type.lower()}: {type(after).__name__} for {seam.path} hides parameters, "
            "which would be neither trained nor saved: expected them in fields or in lists in "
            f"fields, got {', '.join(hidden)}"
        )


def _refuse_idle(
    config: PeftConfig, step: int, seams: Sequence[Seam], targets: Targets, done: set[str]
) -> None:
    """Raise if the step adapted nothing, or nothing that one of its targets names."""
    kinds = {seam.path: type(seam.module).__name__ for seam in seams}
    idle = [
        f"{entry!r} names {len(paths)} modules ({kinds[min(paths)]}) that it cannot adapt"
        for entry, paths in targets.by_entry.items()
        if not paths & done
    ]
    if idle:
        raise TargetError(f"step {step}, {config.peft_type.lower()}:\n{listed(idle)}")
    if not done:
        why = "" if isinstance(config, NamedTargetsConfig) else ": the model has no seam for it"
        raise PeftError(f"step {step}, {config.peft_type.lower()}, adapted nothing{why}")
