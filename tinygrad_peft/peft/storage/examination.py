"""Examination: an adapter's files, interpreted and compared with a model.

Loading and inspecting share this walk: one raises the problems, the other reports them.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from tinygrad_peft.errors import CheckpointError, hinted
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.file_format import FileFormat
from tinygrad_peft.peft.configs.patterns import matches
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig
from tinygrad_peft.peft.hook_types import ForeignStep
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.recipes.targets import ALL_LINEAR
from tinygrad_peft.peft.storage.base_model import differing_base, differing_head
from tinygrad_peft.peft.storage.folder import AdapterFolder, StepFolder
from tinygrad_peft.peft.storage.layout import named_otherwise
from tinygrad_peft.peft.storage.matching import Match, match_step, own_tensors, wrong_dtypes
from tinygrad_peft.peft.storage.problems import Problem, gathered
from tinygrad_peft.peft.storage.step_config import step_config

__all__ = ["Examination", "ExaminedStep", "format_of"]

_PREFIX = "base_model.model."


@dataclass(eq=False)
class ExaminedStep:
    """A step: its files, their config, and its problems.

    `paths` are the paths of the modules that it adapts, as far as they are known.
    """

    folder: StepFolder
    problems: list[Problem] = field(default_factory=list)
    config: PeftConfig | None = None
    foreign: ForeignStep | None = None
    match: Match | None = None
    paths: list[str] = field(default_factory=list)


class Examination:
    """An adapter's folder, compared with a model or with itself; collects every problem."""

    def __init__(self, folder: AdapterFolder, base: TransformerConfig | None) -> None:
        self.folder = folder
        self.own_problems = list(folder.problems)
        self.steps = [ExaminedStep(step, list(step.problems)) for step in folder.steps]
        for step in self.steps:
            if step.folder.settings is None or (step.folder.is_foreign and step.problems):
                continue
            meant = gathered(step.problems, partial(step_config, folder, step.folder, base))
            if meant is not None:
                step.config, step.foreign = meant

    @property
    def problems(self) -> list[Problem]:
        """All problems, the adapter's first, then each step's."""
        return [*self.own_problems, *(p for step in self.steps for p in step.problems)]

    @property
    def recipe(self) -> tuple[PeftConfig, ...]:
        """The configs of the steps that could be read."""
        return tuple(step.config for step in self.steps if step.config is not None)

    def compare(
        self,
        model: Transformer,
        apply: Callable[[Sequence[PeftConfig]], Record],
        applied: Sequence[ExaminedStep] | None = None,
    ) -> Record | None:
        """Compare the steps with what they should be on `model`. Reads no weights of the adapter.

        `apply` applies a recipe; `applied` are the steps to apply, all by default. Returns the
        record, or None if the recipe could not be applied.
        """
        gathered(self.own_problems, lambda: self._check_base(model))
        steps = self.steps if applied is None else applied
        unread = len(self.recipe) < len(self.steps)
        if self.own_problems or unread:
            return None
        recipe = [step.config for step in steps if step.config is not None]
        record = gathered(self.own_problems, lambda: apply(recipe))
        if record is None:
            return None
        for number, step in enumerate(steps):
            found = (r for r in record.rewrites if r.step == number and not r.saved)
            step.paths = [rewrite.seam.path for rewrite in found]
            if not step.problems:
                self._match(record, number, step)
        if any(step.match is not None and step.problems for step in steps):
            self.own_problems += self._note_of_vocabulary(model)
        return record

    def compare_alone(self) -> None:
        """Compare names and shapes with the settings, without a model."""
        for step in self.steps:
            if step.config is None or step.problems:
                continue
            found = gathered(step.problems, partial(_contradictions, step))
            if found is None:  # an expression that takes too long: the paths are not known
                step.paths = []
            self._add(step, found or [])

    def _match(self, record: Record, number: int, step: ExaminedStep) -> None:
        ask = partial(match_step, record, number, step.folder, step.foreign)
        step.match = gathered(step.problems, ask)
        if step.match is not None:
            self._add(step, step.match.problems())

    def _add(self, step: ExaminedStep, texts: Iterable[str]) -> None:
        where = f"{step.folder.name}: " if len(self.steps) > 1 else ""
        step.problems += [Problem(CheckpointError, f"{where}{text}") for text in texts]

    def _check_base(self, model: Transformer) -> None:
        """Raise CheckpointError if the folder's base is another kind of model.

        Its weights might fit nevertheless, with another meaning: a different number of heads,
        pooling, or names of the classes. The vocabulary may differ, since tokenizers gain tokens.
        """
        head = self.folder.head()
        different = differing_base(model, self.folder.recipe)
        different += differing_head(model, head)
        if not different and head is not None and model.classifier is None and self.folder.has_head:
            raise CheckpointError(
                f"{self.folder.path} has a classification head, and the model has none: give it "
                f"one by {head.call}"
            )
        if different:
            raise CheckpointError(
                f"{self.folder.path} was made for another model: {'; '.join(different)}"
            )

    def _note_of_vocabulary(self, model: Transformer) -> list[Problem]:
        different = differing_base(model, self.folder.recipe, ["vocab_size"])
        return [
            Problem(CheckpointError, f"the adapter was made for another model: {d}")
            for d in different
        ]


def format_of(config: PeftConfig) -> FileFormat[PeftConfig]:
    """Return the file format of a config, typed as one for it: its class names no other."""
    return cast("FileFormat[PeftConfig]", config.file_format)


def _contradictions(step: ExaminedStep) -> list[str]:
    config, stored = step.config, step.folder.tensors or {}
    assert config is not None
    if step.foreign is not None:
        named = named_otherwise(stored, step.folder.layout, step.folder.layouts)
        return [*(named or step.foreign.problems), *wrong_dtypes(stored)]
    missing: list[Problem] = []
    tensors = gathered(missing, lambda: own_tensors(step.folder)) or {}
    bare = {key.removeprefix(_PREFIX): tensor.shape for key, tensor in tensors.items()}
    above = _ancestors(bare)
    named = [path for _, paths in _targeted(config, above) for path in paths]
    step.paths = sorted(set(named))
    wrong = format_of(config).checks(config, bare)
    return [*(p.text for p in missing), *_unmatched(config, above), *wrong]


def _ancestors(names: Iterable[str]) -> set[str]:
    """Return every proper prefix, in whole segments, of the names."""
    parts = (name.split(".") for name in names)
    return {".".join(p[:length]) for p in parts for length in range(1, len(p))}


def _targeted(config: PeftConfig, paths: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each entry of the targets with the paths that it matches."""
    targets = config.target_modules if isinstance(config, NamedTargetsConfig) else None
    if targets is None or targets == ALL_LINEAR:
        return
    known = sorted(paths)
    for entry in (targets,) if isinstance(targets, str) else targets:
        pattern = entry if isinstance(targets, str) else [entry]
        yield entry, [path for path in known if matches(path, pattern)]


def _unmatched(config: PeftConfig, paths: Collection[str]) -> list[str]:
    """List the targets without a tensor in the file."""
    ends = {path.rpartition(".")[2] for path in paths}
    names = sorted(name for name in ends if not re.fullmatch(r"\d+", name))
    unmatched = [entry for entry, named in _targeted(config, paths) if not named]
    return [
        f"target_modules: no tensor belongs to {entry!r:.200}{close}"
        for entry, close in hinted(unmatched, names, 1)
    ]
