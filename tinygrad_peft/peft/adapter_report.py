"""Reports on adapters, of one step or of several."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tinygrad_peft.errors import nearest
from tinygrad_peft.host import Host
from tinygrad_peft.models.files import read_json_object
from tinygrad_peft.models.inspection import Report, Tensors, collected, describe_config
from tinygrad_peft.models.tensors import StoredTensor, read_header
from tinygrad_peft.nn import Skeleton, Transformer, TransformerConfig
from tinygrad_peft.peft.checkpoint import read_step
from tinygrad_peft.peft.composition import apply_recipe
from tinygrad_peft.peft.config import NamedTargetsConfig, PeftConfig
from tinygrad_peft.peft.counting import count_recipe
from tinygrad_peft.peft.events import ForeignStep
from tinygrad_peft.peft.foreign import read_foreign
from tinygrad_peft.peft.layout import (
    CONFIG,
    PEFTS,
    RECIPE,
    REPARAMETERIZATION,
    Layout,
    layout_of,
    step_folders,
    weights_path,
)
from tinygrad_peft.peft.made_for import check_base, read_base, read_head
from tinygrad_peft.peft.matching import match_step, named_otherwise, step_tensors, wrong_dtypes
from tinygrad_peft.peft.settings import config_to_dict
from tinygrad_peft.peft.targets import ALL_LINEAR, matches

__all__ = ["inspect_recipe"]

_NOTED = (
    *("task_type", "base_model_name_or_path", "revision", "peft_version"),
    *("name", "model_type", "model_name", "model", "version"),  # AdapterHub's and mlx-lm's
)
_PREFIX = "base_model.model."


@runtime_checkable
class Ranked(Protocol):
    """Settings that give a rank to each path."""

    def rank(self, path: str) -> int: ...


@runtime_checkable
class ForLlamaCpp(Protocol):
    """Settings that know whether llama.cpp takes tensors of these names."""

    def gguf_problems(self, names: Collection[str]) -> list[str]: ...


def inspect_recipe(folder: Path, host: Host, base: TransformerConfig | None) -> Report:
    """A report on an adapter; `base` is the model to hold it against, if that is known."""
    problems: list[str] = []
    names = collected(problems, lambda: step_folders(folder))
    if names is None:
        return Report(path=folder, kind="adapter", problems=problems)
    if base is None and (folder / RECIPE).is_file():
        base = collected(problems, lambda: read_base(folder))
    steps = [_Step(folder / name, host, base) for name in names]
    if base is not None and all(step.config is not None for step in steps):
        problems += _differences(folder, steps, base, host)
    else:
        problems += [p for step in steps for p in step.own_differences()]
    made_for = {} if base is None else {"base": describe_config(base)}
    if len(steps) > 1:
        parts = [step.report() for step in steps]
        facts = {"steps": len(steps), **made_for}
        return Report(path=folder, kind="recipe", facts=facts, problems=problems, parts=parts)
    return steps[0].report(made_for, problems)


class _Step:
    """One step's folder: its config, and the headers of its files."""

    def __init__(self, folder: Path, host: Host, base: TransformerConfig | None) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.layout = _layout(folder)
        self.foreign: ForeignStep | None = None
        if self.layout != PEFTS:
            self.foreign = collected(self.problems, lambda: read_foreign(folder, host, base))
        self.paths: list[str] = []  # of the modules that it adapts, as far as that is known
        self.config = None if self.foreign is None else self.foreign.config
        if self.layout == PEFTS:
            self.config = collected(self.problems, lambda: read_step(folder, host))
        weights = (weights_path(folder, self.layout), folder / REPARAMETERIZATION)
        self.has_weights = any(path.is_file() for path in weights)
        self.stored: dict[str, StoredTensor] | None = None
        if weights[0].is_file():
            self.stored = collected(self.problems, lambda: step_tensors(folder))
        if (folder / REPARAMETERIZATION).is_file():
            collected(self.problems, lambda: read_header(folder / REPARAMETERIZATION))

    def own_differences(self) -> list[str]:
        """What names and shapes alone show, where the base is not known."""
        if self.config is None or self.problems:
            return []
        if self.foreign is not None:
            stored = self.stored or {}
            told = named_otherwise(stored, self.layout) or self.foreign.problems
            return [*told, *wrong_dtypes(stored)]
        problems: list[str] = []
        stored = collected(problems, lambda: step_tensors(self.folder)) or {}
        bare = {key.removeprefix(_PREFIX): tensor.shape for key, tensor in stored.items()}
        above = _ancestors(bare)
        named = (paths for _, paths in _targeted(self.config, above))
        self.paths = sorted({path for paths in named for path in paths})
        return [*problems, *_unmatched(self.config, above), *self.config.stored_problems(bare)]

    def report(
        self, more: Mapping[str, object] | None = None, problems: Sequence[str] = ()
    ) -> Report:
        """What is in the folder."""
        return Report(
            path=self.folder,
            kind="adapter",
            facts={"format": self.layout, **dict(self._facts()), **(more or {})},
            tensors=None if self.stored is None else Tensors.of(self.stored),
            problems=list(dict.fromkeys([*self.problems, *problems])),
        )

    def _facts(self) -> Iterator[tuple[str, object]]:
        raw = collected([], lambda: read_json_object(self.folder / CONFIG)) or {}
        config = self.config
        named = raw.get("peft_type") if config is None else config.peft_type
        yield "method", None if named is None else str(named).lower()
        if config is not None:
            yield "settings", _changed(config)
            if isinstance(config, NamedTargetsConfig):
                yield "targets", config.target_modules or "the method's usual"
            yield "modules", len(self.paths) or None
            if isinstance(config, Ranked) and self.paths:
                yield "ranks", sorted({config.rank(path) for path in self.paths})
            if isinstance(config, ForLlamaCpp) and self.stored and self.layout == PEFTS:
                yield "llama.cpp", "; ".join(config.gguf_problems(self.stored)) or "converts"
        yield from ((name, raw[name]) for name in _NOTED if raw.get(name) not in (None, ""))


def _layout(folder: Path) -> Layout:
    return collected([], lambda: layout_of(folder) or PEFTS) or PEFTS


def _differences(
    folder: Path, steps: Sequence[_Step], base: TransformerConfig, host: Host
) -> list[str]:
    """How the steps differ from what they would be on that base, of which no weight is needed."""
    problems: list[str] = []
    model = collected(problems, lambda: Transformer(base, Skeleton()))
    if model is None:
        return problems
    head = collected(problems, lambda: read_head(folder))
    if head is not None and model.classifier is None:
        model.with_classifier(head.label_names or head.num_labels, pooling=head.pooling)
    collected(problems, lambda: check_base(model, folder))
    applied = [step for step in steps if step.has_weights or _trains(step, model.config, host)]
    recipe = [step.config for step in applied if step.config is not None]
    if not recipe:
        return problems
    record = collected(problems, lambda: apply_recipe(model, recipe, host, loading=True))
    if record is None:
        return problems
    for number, step in enumerate(applied):
        found = (r for r in record.rewrites if r.step == number and not r.saved)
        step.paths = [rewrite.seam.path for rewrite in found]
        if not step.problems:
            ask = partial(match_step, record, number, step.folder, step.foreign)
            where = f"{step.folder.name}: " if len(steps) > 1 else ""
            match = collected(problems, ask)
            problems += [where + problem for problem in match.problems()] if match else []
    return problems


def _trains(step: _Step, base: TransformerConfig, host: Host) -> bool:
    """Whether a step has weights at all; one that cannot be counted may have some."""
    config = step.config
    assert config is not None
    counted = collected([], lambda: count_recipe(base, config, host))
    return counted is None or counted[0] > 0


def _changed(config: PeftConfig) -> dict[str, object]:
    """The settings that are not the method's own defaults."""
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


def _ancestors(names: Iterable[str]) -> set[str]:
    """Every path that one of the names lies below."""
    parts = (name.split(".") for name in names)
    return {".".join(p[:length]) for p in parts for length in range(1, len(p))}


def _targeted(config: PeftConfig, paths: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each entry of the targets with the paths that it names."""
    targets = config.target_modules if isinstance(config, NamedTargetsConfig) else None
    if targets is None or targets == ALL_LINEAR:
        return
    known = sorted(paths)
    for entry in (targets,) if isinstance(targets, str) else targets:
        pattern = entry if isinstance(targets, str) else [entry]
        yield entry, [path for path in known if matches(path, pattern)]


def _unmatched(config: PeftConfig, paths: Collection[str]) -> list[str]:
    """Targets of which the file holds nothing."""
    names = sorted({path.rpartition(".")[2] for path in paths} - {str(n) for n in range(10_000)})
    return [
        f"target_modules: no tensor is of {entry!r}{nearest(entry, names, 1)}"
        for entry, named in _targeted(config, paths)
        if not named
    ]
