"""The head of an adapter whose pooling no classifier of transformers has.

PEFT's SEQ_CLS would pool otherwise. So the folder is one of sentence-transformers as well: the
adapter is the encoder's (FEATURE_EXTRACTION), and the head is a Dense beside it. recipe.json notes
the step that trains the head, with its `modules_to_save` as given. In memory the head's tensors
have the names of any module that is saved whole.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import Transaction
from tinygrad_peft.models import checkpoint_path
from tinygrad_peft.models.hf import StoredTensor
from tinygrad_peft.models.sentence_transformers import (
    HEAD_FILES,
    SentenceModules,
    read_modules,
    stored_head,
    write_head,
)
from tinygrad_peft.nn import Parameter, Transformer
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.file_format import PREFIX

__all__ = [
    "NOTE",
    "SentenceHead",
    "note_of",
    "read_head",
    "save_head",
    "split_head",
    "without_head",
]

NOTE = "head"  # in recipe.json
_USUAL = "classifier"  # in somebody else's adapter


class _Note(msgspec.Struct):
    """The step that trains the head, with its `modules_to_save` and the head's path as given."""

    step: str
    module: str
    modules_to_save: list[str]


@dataclass(frozen=True, eq=False)
class SentenceHead:
    """A head beside an adapter.

    Attributes:
        modules: the modules of the folder.
        step: the step that trains it.
        modules_to_save: that step's.
        tensors: the head's, by their names in a step's file.
        num_labels: the number of classes; 0 if the file has no weight.
    """

    modules: SentenceModules
    step: str
    modules_to_save: tuple[str, ...] | None
    tensors: Mapping[str, StoredTensor]
    num_labels: int

    def completed(self, settings: Mapping[str, object]) -> dict[str, object]:
        """Return the step's settings with the head among `modules_to_save`."""
        if self.modules_to_save is not None:
            return {**settings, "modules_to_save": list(self.modules_to_save)}
        given = settings.get("modules_to_save")
        saved = given if isinstance(given, list) else []
        return {**settings, "modules_to_save": [*saved, _USUAL]}


# ---------- saving ----------


def split_head(
    stored: Mapping[str, Parameter], model: Transformer
) -> tuple[dict[str, Parameter], dict[str, Parameter]]:
    """Part a step's weights: those of its own file, and the head's by their names in the head."""
    if not model.config.is_sentence_classifier:
        return dict(stored), {}
    key = f"{PREFIX}.{checkpoint_path(model.config, 'classifier')}."
    head = {k.removeprefix(key): value for k, value in stored.items() if k.startswith(key)}
    return {k: value for k, value in stored.items() if not k.startswith(key)}, head


def without_head(config: PeftConfig, model: Transformer) -> PeftConfig:
    """Return a step's config without the head among `modules_to_save`."""
    path = checkpoint_path(model.config, "classifier")
    if not model.config.is_sentence_classifier or path not in config.modules_to_save:
        return config
    return replace(config, modules_to_save=[m for m in config.modules_to_save if m != path])


def note_of(step: str, config: PeftConfig, model: Transformer) -> dict[str, object]:
    """Return the note for recipe.json on the step that trains the head."""
    path = checkpoint_path(model.config, "classifier")
    return {"step": step, "module": path, "modules_to_save": list(config.modules_to_save)}


def save_head(save: Transaction, model: Transformer, head: Mapping[str, Parameter]) -> None:
    """Write the modules beside an adapter whose head, or whose encoder, needs them."""
    save.remove(HEAD_FILES)
    encoder = model.classifier is None and model.config.sentence_transformers
    if head:
        write_head(save, model.config, {name: p.data for name, p in head.items()})
    elif encoder:
        write_head(save, model.config, None)


# ---------- reading ----------


def read_head(
    directory: Path, recipe: Mapping[str, object], steps: Collection[str]
) -> SentenceHead | None:
    """Read the head beside an adapter, if there is one.

    `recipe` is recipe.json, empty if it is missing: the head of somebody else's adapter belongs to
    its only step.

    Raises CheckpointError for files that are broken, or contradict each other.
    """
    note = _note(directory, recipe, steps)
    if note is None and recipe:
        return None
    modules = read_modules(directory)
    if modules is None or modules.dense is None:
        if note is None:
            return None
        raise CheckpointError(f"{directory}: recipe.json describes a head, and no Dense is there")
    base = recipe.get("base")
    pooling = base.get("pooling") if isinstance(base, Mapping) else None
    if pooling not in (None, modules.pooling):
        raise CheckpointError(
            f"{directory}: 1_Pooling: expected {pooling!r} as in recipe.json, "
            f"got {modules.pooling!r}"
        )
    stored = stored_head(modules.dense)
    path = _USUAL if note is None else note.module
    return SentenceHead(
        modules=modules,
        step="." if note is None else note.step,
        modules_to_save=None if note is None else tuple(note.modules_to_save),
        tensors={f"{PREFIX}.{path}.{name}": tensor for name, tensor in stored.items()},
        num_labels=stored["weight"].shape[0] if "weight" in stored else 0,
    )


def _note(directory: Path, recipe: Mapping[str, object], steps: Collection[str]) -> _Note | None:
    if NOTE not in recipe:
        return None
    try:
        note = msgspec.convert(recipe[NOTE], _Note)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{directory / 'recipe.json'}: {NOTE}: {error}") from None
    if note.step not in steps:
        known = ", ".join(map(repr, steps))
        raise CheckpointError(
            f"{directory / 'recipe.json'}: {NOTE}: step: expected one of {known}, "
            f"got {note.step!r:.80}"
        )
    return note
