"""An adapter's folder as it is on disk: each file opened once, and what is wrong with it kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.host import Host
from tinygrad_peft.models.hf.safetensors import StoredTensor, read_header
from tinygrad_peft.models.safe_files import read_json_object
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft.folder_layout import HUGGING_FACE, FolderLayout
from tinygrad_peft.peft.storage.base_model import Head, base_in, head_in
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
from tinygrad_peft.peft.storage.problems import Problem, gathered

__all__ = ["AdapterFolder", "StepFolder", "steps_in"]

_NONE: Mapping[str, object] = {}


@dataclass(frozen=True, eq=False)
class StepFolder:
    """The files of one step.

    Attributes:
        path: the folder.
        name: the folder's name within the adapter's, "." for that itself.
        layout: whose layout it has.
        layouts: all that are known.
        settings: adapter_config.json, or None where it cannot be read.
        origin: the settings for training, where they differ from those of the weights.
        tensors: the headers of the weights, or None where they are missing or cannot be read.
        beside: the headers of the weights that those come out of, if there are any.
        problems: what is wrong with the files. Missing weights are not: a step may have none.
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
    def read(cls, path: Path, name: str, layouts: Layouts) -> "StepFolder":
        """Read the settings and the headers in a folder."""
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
        return cls(path, name, layout, layouts, settings, origin, tensors, beside, tuple(problems))

    @property
    def is_foreign(self) -> bool:
        """True for a step in another library's layout."""
        return self.layout != HUGGING_FACE

    @property
    def has_weights(self) -> bool:
        """True where any weights are there."""
        return self.tensors is not None or self.beside is not None

    @property
    def base_name(self) -> tuple[object, object]:
        """The name and the revision of the model that it was trained on, as the settings say."""
        settings = self.settings or _NONE
        return settings.get(self.layout.base_key), settings.get("revision")

    def weights(self) -> Mapping[str, StoredTensor]:
        """Return the headers of the weights. Raises CheckpointError where there are none."""
        if self.tensors is None:
            raise without_weights(self.path, self.layout, self.layouts)
        return self.tensors


@dataclass(frozen=True, eq=False)
class AdapterFolder:
    """The files of an adapter: what recipe.json says, and its steps.

    Attributes:
        path: the folder.
        host: the plugins that are asked what the files mean.
        layouts: those that `host` knows.
        recipe: what recipe.json holds; nothing where it is missing or cannot be read.
        steps: in their order; none where the folder is not an adapter's.
        problems: what is wrong with the folder and with recipe.json.
    """

    path: Path
    host: Host
    layouts: Layouts
    recipe: Mapping[str, object] = field(default_factory=dict)
    steps: tuple[StepFolder, ...] = ()
    problems: tuple[Problem, ...] = ()

    @classmethod
    def read(cls, path: str | Path, host: Host | None = None) -> "AdapterFolder":
        """Read recipe.json, and the settings and headers of each step. Whatever they hold, it ends.

        Raises PluginError where plugins contradict each other.
        """
        directory, host = Path(path), host or Host.installed()
        layouts = known_layouts(host)
        problems: list[Problem] = []
        recipe = gathered(problems, lambda: _read_recipe(directory, layouts))
        names = gathered(problems, lambda: _names(recipe, directory)) or []
        steps = tuple(StepFolder.read(directory / name, name, layouts) for name in names)
        return cls(directory, host, layouts, recipe or {}, steps, tuple(problems))

    @property
    def all_problems(self) -> list[Problem]:
        """What is wrong with the folder, and then with its steps."""
        return [*self.problems, *(p for step in self.steps for p in step.problems)]

    @cached_property
    def base(self) -> TransformerConfig | None:
        """The settings of the model that it was made for, where recipe.json tells them."""
        return base_in(self.recipe)

    def head(self) -> Head | None:
        """Return the classification head that it was trained with, if any.

        Raises CheckpointError where recipe.json describes it wrongly.
        """
        return head_in(self.recipe, self.path / RECIPE)

    def note(self, name: str) -> Mapping[str, object]:
        """Return the notes of a name in recipe.json, or none."""
        found = self.recipe.get(name)
        return found if isinstance(found, Mapping) else {}


def steps_in(directory: Path) -> list[str]:
    """Return the folders of the steps of any adapter in a folder; none where it is broken."""
    if not (directory / RECIPE).is_file():
        return ["."] if (directory / CONFIG).is_file() else []
    ignored: list[Problem] = []
    recipe = gathered(ignored, lambda: read_json_object(directory / RECIPE))
    return gathered(ignored, lambda: step_names(recipe or {}, directory / RECIPE)) or []


def _read_recipe(directory: Path, layouts: Layouts) -> Mapping[str, object] | None:
    """Return recipe.json, or {} where the folder is one step without it."""
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
