"""An adapter's folder on disk: each file opened once, and its problems kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import read_json_object, settled
from tinygrad_peft.host import Host
from tinygrad_peft.models.hf.safetensors import StoredTensor, read_header
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft.folder_layout import HUGGING_FACE, FolderLayout
from tinygrad_peft.peft.storage.base_model import HEADS, Head, base_in, head_in
from tinygrad_peft.peft.storage.layout import (
    CONFIG,
    ORIGIN,
    RECIPE,
    REPARAMETERIZATION,
    Layouts,
    known_layouts,
    layout_by_files,
    layout_by_settings,
    step_names,
    without_settings,
    without_weights,
)
from tinygrad_peft.peft.storage.notes import note_problems
from tinygrad_peft.peft.storage.problems import Problem, gathered
from tinygrad_peft.peft.storage.sentence_head import SentenceHead, read_head

__all__ = ["AdapterFolder", "StepFolder", "steps_in"]

_NONE: Mapping[str, object] = {}


@dataclass(frozen=True, eq=False)
class StepFolder:
    """The files of one step.

    Attributes:
        path: the folder.
        name: the folder's name within the adapter's folder; "." for that folder itself.
        layout: its layout.
        layouts: all known layouts.
        settings: adapter_config.json; None if it cannot be read.
        origin: the settings for training, if they differ from adapter_config.json.
        tensors: the headers of the weights; None if they are missing or cannot be read.
        beside: the headers of the weights that those are computed from, if any.
        problems: problems with the files. Missing weights are not one: a step may have none.
    """

    path: Path
    name: str
    layout: FolderLayout
    layouts: Layouts
    settings: Mapping[str, object] | None
    origin: Mapping[str, object] | None
    tensors: Mapping[str, StoredTensor] | None
    beside: Mapping[str, StoredTensor] | None
    problems: tuple[Problem, ...]

    @classmethod
    def read(
        cls, path: Path, name: str, layouts: Layouts, head: SentenceHead | None = None
    ) -> "StepFolder":
        """Read the settings and the headers in a folder; `head` is that which the step trains."""
        problems: list[Problem] = []
        settings = gathered(problems, lambda: read_json_object(path / CONFIG))
        found = (
            layout_by_files(path, layouts)
            if settings is None
            else layout_by_settings(settings, layouts)
        )
        layout = found or HUGGING_FACE
        tensors, beside = (
            gathered(problems, partial(read_header, file)) if file.exists() else None
            for file in (path / layout.weights, path / REPARAMETERIZATION)
        )
        is_origin = (path / REPARAMETERIZATION).exists() and (path / ORIGIN).exists()
        origin = gathered(problems, lambda: read_json_object(path / ORIGIN)) if is_origin else None
        if head is not None:
            settings, origin = (
                None if values is None else head.completed(values) for values in (settings, origin)
            )
            tensors = {**(tensors or {}), **head.tensors}
        return cls(path, name, layout, layouts, settings, origin, tensors, beside, tuple(problems))

    @property
    def is_foreign(self) -> bool:
        """True for a step in another library's layout."""
        return self.layout != HUGGING_FACE

    @property
    def has_weights(self) -> bool:
        """True if there are any weights."""
        return self.tensors is not None or self.beside is not None

    @property
    def classes(self) -> int:
        """The rows of a classification head's weight (C, D) in the file; 0: it has none."""
        ends = tuple(f".{head}.weight" for head in HEADS)
        named = (tensor for key, tensor in (self.tensors or {}).items() if key.endswith(ends))
        return next((tensor.shape[0] for tensor in named if len(tensor.shape) == 2), 0)

    @property
    def base_name(self) -> tuple[object, object]:
        """The name and the revision of the base model in the settings."""
        settings = self.settings or _NONE
        return settings.get(self.layout.base_key), settings.get("revision")

    def weights(self) -> Mapping[str, StoredTensor]:
        """Return the headers of the weights. Raises CheckpointError if there are none."""
        if self.tensors is None:
            raise without_weights(self.path, self.layout, self.layouts)
        return self.tensors


@dataclass(frozen=True, eq=False)
class AdapterFolder:
    """The files of an adapter: recipe.json, and the files of its steps.

    Attributes:
        path: the folder.
        host: the plugins that interpret the files.
        layouts: the layouts that `host` knows.
        recipe: the contents of recipe.json; empty if it is missing or cannot be read.
        steps: in their order; empty if the folder is not an adapter's.
        problems: problems with the folder and with recipe.json.
        sentence_head: the head beside it, in a folder of sentence-transformers.
    """

    path: Path
    host: Host
    layouts: Layouts
    recipe: Mapping[str, object] = field(default_factory=dict)
    steps: tuple[StepFolder, ...] = ()
    problems: tuple[Problem, ...] = ()
    sentence_head: SentenceHead | None = None

    @classmethod
    def read(cls, path: str | Path, host: Host | None = None) -> "AdapterFolder":
        """Read recipe.json, and the settings and headers of each step; problems are kept.

        Raises PluginError if plugins contradict each other.
        """
        directory, host = settled(Path(path)), host or Host.installed()
        layouts = known_layouts(host)
        problems: list[Problem] = []
        recipe = gathered(problems, lambda: _read_recipe(directory, layouts))
        names = gathered(problems, lambda: _names(recipe, directory)) or []
        where = directory / RECIPE
        odd = [f"{where}: {problem}" for problem in note_problems(recipe or {})]
        problems += [Problem(CheckpointError, problem) for problem in odd]
        head = gathered(problems, lambda: read_head(directory, recipe or {}, names))
        steps = tuple(
            StepFolder.read(
                directory / name, name, layouts, head if head and head.step == name else None
            )
            for name in names
        )
        return cls(directory, host, layouts, recipe or {}, steps, tuple(problems), head)

    @property
    def all_problems(self) -> list[Problem]:
        """The problems with the folder, followed by those with its steps."""
        return [*self.problems, *(p for step in self.steps for p in step.problems)]

    @cached_property
    def base(self) -> TransformerConfig | None:
        """The settings of the model that it was made for, if recipe.json has them."""
        return base_in(self.recipe)

    def head(self) -> Head | None:
        """Return the classification head that it was trained with, if any.

        recipe.json describes it. Hugging Face PEFT's own folders have its weight alone, and the
        pooling of transformers' class.

        Raises CheckpointError for an invalid description in recipe.json.
        """
        if "base" in self.recipe:
            return head_in(self.recipe, self.path / RECIPE)
        beside = self.sentence_head
        if beside is not None:
            return Head(beside.num_labels, beside.modules.pooling, sentence_transformers=True)
        classes = [
            step.classes
            for step in self.steps
            if (step.settings or _NONE).get("task_type") == "SEQ_CLS"
        ]
        return next((Head(count, None) for count in classes if count), None)

    @property
    def has_head(self) -> bool:
        """True if a step has a classification head's weights."""
        return any(step.classes for step in self.steps)

    def note(self, name: str) -> Mapping[str, object]:
        """Return an object of recipe.json by its name, or an empty one."""
        found = self.recipe.get(name)
        return found if isinstance(found, Mapping) else {}


def steps_in(directory: Path) -> list[str]:
    """List the folders of the steps of an adapter, if any; empty if recipe.json is broken."""
    if not (directory / RECIPE).is_file():
        return ["."] if (directory / CONFIG).is_file() else []
    ignored: list[Problem] = []
    recipe = gathered(ignored, lambda: read_json_object(directory / RECIPE))
    return gathered(ignored, lambda: step_names(recipe or {}, directory / RECIPE)) or []


def _read_recipe(directory: Path, layouts: Layouts) -> Mapping[str, object] | None:
    """Return recipe.json, or {} for a folder of one step without it."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    if (directory / RECIPE).exists():
        return read_json_object(directory / RECIPE)
    if not (directory / CONFIG).exists():
        raise without_settings(directory, layouts)
    return {}


def _names(recipe: Mapping[str, object] | None, directory: Path) -> list[str]:
    if recipe is None:
        return []
    has_recipe = bool(recipe) or (directory / RECIPE).exists()
    return step_names(recipe, directory / RECIPE) if has_recipe else ["."]
