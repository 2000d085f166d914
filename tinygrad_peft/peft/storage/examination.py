"""Examination: an adapter's files, interpreted and compared with a model.

Loading and inspecting share this walk: one raises the problems, the other reports them.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from tinygrad_peft.arrays import Shape
from tinygrad_peft.errors import CheckpointError, hinted
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.file_format import FileFormat
from tinygrad_peft.peft.configs.patterns import matches, named_by
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig
from tinygrad_peft.peft.hook_types import ForeignStep
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.recipes.saved_modules import is_saved_whole
from tinygrad_peft.peft.recipes.targets import ALL_LINEAR
from tinygrad_peft.peft.storage.base_model import differing_base, differing_head
from tinygrad_peft.peft.storage.base_weights import base_note
from tinygrad_peft.peft.storage.folder import AdapterFolder, StepFolder
from tinygrad_peft.peft.storage.layout import named_otherwise
from tinygrad_peft.peft.storage.matching import Match, match_step, own_tensors, wrong_dtypes
from tinygrad_peft.peft.storage.problems import Problem, gathered
from tinygrad_peft.peft.storage.step_config import step_config

__all__ = ["Examination", "ExaminedStep", "format_of"]

_PREFIX = "base_model.model."
# An embedding of tokens or an output layer of any family, in PEFT's wrappers or not.
_TABLE = re.compile(
    r"(?:base_model\.)?(?P<path>(?:.*\.)?(?:embed_tokens|wte|word_embeddings|lm_head))"
    r"(?:\.token_adapter)?(?:\.base_layer)?\.weight"
)


@dataclass(eq=False)
class ExaminedStep:
    """A step: its files, their config, and its problems.

    `notes` lists what is passed over or used though it may not be expected. `paths` are the paths
    of the modules that it adapts, as far as they are known.
    """

    folder: StepFolder
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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
            meant = gathered(
                step.problems, partial(step_config, folder, step.folder, base, step.notes)
            )
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
            step.notes += record.targets[number].notes
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
            found = gathered(step.problems, partial(_compared_alone, step))
            if found is None:  # an expression that takes too long: the paths are not known
                step.paths = []
                continue
            wrong, idle = found
            self._add(step, [*idle, *wrong] if wrong else [])
            step.notes += [*([] if wrong else idle), *_tables(step)]

    def _match(self, record: Record, number: int, step: ExaminedStep) -> None:
        ask = partial(match_step, record, number, step.folder, step.foreign)
        step.match = gathered(step.problems, ask)
        if step.match is None:
            return
        if problems := step.match.problems():
            # What names nothing may be the reason.
            self._add(step, [*record.targets[number].notes, *problems])
        step.notes += [*step.match.notes, *_idle(step, record.targets[number].paths)]

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
        own = model.config.vocab_size
        sizes = {n for step in self.steps if step.match for n in step.match.vocabularies(own)}
        texts = [_grown(own, other) for other in sorted(sizes)]
        if not texts:
            different = differing_base(model, self.folder.recipe, ["vocab_size"])
            texts = [f"the adapter was made for another model: {d}" for d in different]
        return [Problem(CheckpointError, text) for text in texts]


def _grown(own: int, other: int) -> str:
    """Tell that the adapter was trained on another vocabulary, and what can be done."""
    count = abs(other - own)
    how = f"{count} {'more' if other > own else 'fewer'}"
    return (
        f"the adapter's vocabulary has {other} tokens, {how} than the model's {own}: resize the "
        f"model as for its training (in transformers, resize_token_embeddings({other}) and "
        "save_pretrained), and name that folder as the model"
    )


def format_of(config: PeftConfig) -> FileFormat[PeftConfig]:
    """Return the file format of a config, typed as one for it: its class names no other."""
    return cast("FileFormat[PeftConfig]", config.file_format)


def _idle(step: ExaminedStep, paths: Collection[str]) -> Sequence[str]:
    """List settings of a step that choose none of the paths that it targets."""
    return () if step.config is None else format_of(step.config).idle(step.config, paths)


def _compared_alone(step: ExaminedStep) -> tuple[list[str], list[str]]:
    """Return the contradictions of a step's files with its settings, and its idle targets."""
    return _contradictions(step), _idle_targets(step)


def _contradictions(step: ExaminedStep) -> list[str]:
    config, stored = step.config, step.folder.tensors or {}
    assert config is not None
    if step.foreign is not None:
        named = named_otherwise(stored, step.folder.layout, step.folder.layouts)
        return [*(named or step.foreign.problems), *wrong_dtypes(stored)]
    missing: list[Problem] = []
    gathered(missing, lambda: own_tensors(step.folder))
    bare, config = _bare_shapes(step), config.flattened()  # as other programs read the file
    named = [path for _, paths in _targeted(config, _ancestors(bare)) for path in paths]
    step.paths = sorted(set(named))
    return [*(p.text for p in missing), *format_of(config).checks(config, bare)]


def _idle_targets(step: ExaminedStep) -> list[str]:
    """List the targets that no tensor in the file belongs to."""
    if step.foreign is not None or step.config is None:
        return []
    return _unmatched(step.config, _ancestors(_bare_shapes(step)))


def _tables(step: ExaminedStep) -> list[str]:
    """List the tables of tokens in the file that are the base's own, not the method's."""
    config = step.config
    if step.foreign is not None or config is None:
        return []
    found = (_TABLE.fullmatch(key) for key in _bare_shapes(step))
    paths = dict.fromkeys(match["path"] for match in found if match)
    return [base_note(path, "weight") for path in paths if not is_saved_whole(config, path)]


def _bare_shapes(step: ExaminedStep) -> dict[str, Shape]:
    """Return the shapes of the tensors by their names without the usual prefix."""
    stored = step.folder.tensors
    tensors = own_tensors(step.folder) if stored is not None else {}
    return {key.removeprefix(_PREFIX): tensor.shape for key, tensor in tensors.items()}


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
    if isinstance(targets, str):
        yield targets, [path for path in known if matches(path, targets)]
    else:
        yield from named_by(targets, known).items()


def _unmatched(config: PeftConfig, paths: Collection[str]) -> list[str]:
    """List the targets without a tensor in the file."""
    ends = {path.rpartition(".")[2] for path in paths}
    names = sorted(name for name in ends if not re.fullmatch(r"\d+", name))
    unmatched = [entry for entry, named in _targeted(config, paths) if not named]
    return [
        f"target_modules: no tensor belongs to {entry!r:.200}{close}"
        for entry, close in hinted(unmatched, names, 1)
    ]
