"""Reports on adapters, of one step or of several."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinygrad_peft.host import Host
from tinygrad_peft.models.inspection import Report, Tensors, describe_config
from tinygrad_peft.nn import Skeleton, Transformer, TransformerConfig
from tinygrad_peft.peft.accounting.parameters import count_recipe
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.serialisation import config_to_dict
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig
from tinygrad_peft.peft.recipes.apply import apply_recipe, checked_targets
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.sites import capture_seams
from tinygrad_peft.peft.storage.examination import Examination, ExaminedStep, format_of
from tinygrad_peft.peft.storage.folder import AdapterFolder
from tinygrad_peft.peft.storage.problems import Problem, gathered

__all__ = ["report_on"]


def report_on(folder: AdapterFolder, base: TransformerConfig | None) -> Report:
    """Report on an adapter, compared with `base`, or else the model that its folder describes.

    With a model, the problems are the ones that loading raises, except those that need the base's
    weights.
    """
    base = folder.base if base is None else base
    examined = Examination(folder, base)
    if base is None:
        examined.compare_alone()
    else:
        _compare(examined, base, folder.host)
    facts: dict[str, object] = {} if base is None else {"base": describe_config(base)}
    if folder.sentence_head is not None:
        facts |= folder.sentence_head.modules.facts()
    own = [problem.text for problem in examined.own_problems]
    if not examined.steps:
        return Report(path=folder.path, kind="adapter", problems=own)
    if len(examined.steps) == 1:
        return _report(examined.steps[0], facts, own)
    parts = [_report(step) for step in examined.steps]
    facts = {"steps": len(parts), **facts}
    return Report(path=folder.path, kind="recipe", facts=facts, problems=own, parts=parts)


def _compare(examined: Examination, base: TransformerConfig, host: Host) -> None:
    """Compare with the shapes of a model, including the head that the adapter was trained with."""
    model = gathered(examined.own_problems, lambda: Transformer(base, Skeleton()))
    if model is None:
        return
    ignored: list[Problem] = []  # `compare` finds these again
    head = gathered(ignored, examined.folder.head)
    if head is not None and model.classifier is None:
        head.give(model)
    # Steps without weights are left out: quantising a base of shapes takes time and memory.
    applied = [step for step in examined.steps if _has_weights(step, model.config, host)]

    def apply(recipe: Sequence[PeftConfig]) -> Record:
        seams = capture_seams(model)
        targets = checked_targets(model, examined.recipe, seams, host, loading=True)
        if not recipe:
            return Record((), tuple(targets))
        return apply_recipe(model, recipe, host, loading=True)

    examined.compare(model, apply, applied)


def _has_weights(step: ExaminedStep, base: TransformerConfig, host: Host) -> bool:
    """Return True for a step with stored or trained weights, or one that cannot be counted."""
    config = step.config
    if config is None or step.folder.has_weights:
        return True
    ignored: list[Problem] = []
    counted = gathered(ignored, lambda: count_recipe(base, config, host))
    return counted is None or counted[0] > 0


def _report(
    step: ExaminedStep, facts: Mapping[str, object] | None = None, more: Sequence[str] = ()
) -> Report:
    """Report on one step, with the adapter's facts and problems if it is the only step."""
    folder = step.folder
    problems = [*more, *(problem.text for problem in step.problems)]
    return Report(
        path=folder.path,
        kind="adapter",
        facts={"format": folder.layout.name, **dict(_facts(step)), **(facts or {})},
        tensors=None if folder.tensors is None else Tensors.of(folder.tensors),
        problems=list(dict.fromkeys(problems)),
        notes=list(dict.fromkeys(step.notes)),
    )


def _facts(step: ExaminedStep) -> Iterator[tuple[str, object]]:
    raw, config = step.folder.settings or {}, step.config
    named = raw.get("peft_type") if config is None else config.peft_type
    yield "method", None if named is None else str(named).lower()
    if config is not None:
        yield "settings", _changed(config)
        if isinstance(config, NamedTargetsConfig):
            yield "targets", config.target_modules or "the method's usual"
        yield "modules", len(step.paths) or None
        yield from _facts_of_format(step, config)
    noted = step.folder.layout.noted
    yield from ((name, raw[name]) for name in noted if raw.get(name) not in (None, ""))


def _facts_of_format(step: ExaminedStep, config: PeftConfig) -> Iterator[tuple[str, object]]:
    form, stored = format_of(config), step.folder.tensors
    if form.ranks is not None and step.paths:
        rank_at = form.ranks
        yield "ranks", sorted({rank_at(config, path) for path in step.paths})
    if form.llama_cpp is not None and stored and not step.folder.is_foreign:
        yield "llama.cpp", "; ".join(form.llama_cpp(config, stored)) or "converts"


def _changed(config: PeftConfig) -> dict[str, object]:
    """Return the settings that differ from the method's own defaults."""
    defaults = {field.name: field for field in dataclasses.fields(config)}
    values = config_to_dict(config)
    return {
        name: value
        for name, value in values.items()
        if name in defaults and name != "target_modules" and not _is_default(defaults[name], config)
    }


def _is_default(setting: "dataclasses.Field[Any]", config: PeftConfig) -> bool:
    value = getattr(config, setting.name)
    if setting.default_factory is not dataclasses.MISSING:
        return bool(value == setting.default_factory())
    return bool(value == setting.default)
