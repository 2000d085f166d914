"""The files of an adapter's folder, the folders of its steps, and their layouts."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from tinygrad_peft.errors import CheckpointError, ConfigError, PluginError, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.folder_layout import HUGGING_FACE, FolderLayout

__all__ = [
    "CONFIG",
    "FORMAT",
    "ORIGIN",
    "RECIPE",
    "REPARAMETERIZATION",
    "Layouts",
    "adapter_folders",
    "holds_adapter",
    "known_layouts",
    "layout_by_files",
    "layout_by_settings",
    "layout_called",
    "layout_of_tensors",
    "named_otherwise",
    "step_files",
    "step_names",
    "without_settings",
    "without_weights",
]

CONFIG, RECIPE = "adapter_config.json", "recipe.json"
REPARAMETERIZATION = "reparameterization.safetensors"  # weights that a step's are computed from
ORIGIN = "reparameterization.json"  # the settings for training, where they differ
_BESIDE = (REPARAMETERIZATION, ORIGIN)
FORMAT = 1

Layouts: TypeAlias = Sequence[FolderLayout]


def known_layouts(host: Host) -> Layouts:
    """Return Hugging Face PEFT's layout, and the layouts that plugins describe.

    Raises PluginError if two plugins describe one layout differently.
    """
    found = {HUGGING_FACE.name: HUGGING_FACE}
    for layout in (layout for answer in host.each(hookspecs.foreign_layouts) for layout in answer):
        if found.setdefault(layout.name, layout) != layout:
            raise PluginError(f"two plugins describe the layout {layout.name!r} differently")
    return tuple(found.values())


def layout_called(name: object, layouts: Layouts) -> FolderLayout:
    """Return the layout of a name. Raises ConfigError, with the nearest, for unknown names."""
    named = {layout.name: layout for layout in layouts}
    if isinstance(name, str) and name in named:
        return named[name]
    known, close = ", ".join(named), nearest(str(name), named)
    raise ConfigError(f"layout: expected one of {known}, got {name!r}{close}")


def layout_by_settings(settings: Mapping[str, object], layouts: Layouts) -> FolderLayout | None:
    """Return the layout that recognises an adapter_config.json, if any."""
    return next((layout for layout in layouts if layout.recognises(settings)), None)


def layout_by_files(folder: Path, layouts: Layouts) -> FolderLayout | None:
    """Return the layout whose weights a folder without settings holds, if any."""
    for layout in layouts:
        if any((folder / name).is_file() for name in (layout.weights, layout.never_read)):
            return layout
    return None


def step_names(recipe: Mapping[str, object], path: Path) -> list[str]:
    """Return the folders of the steps that a recipe.json at `path` lists.

    Raises CheckpointError for another format, and for names other than the folder itself and its
    direct subfolders.
    """
    if recipe.get("format") != FORMAT or isinstance(recipe.get("format"), bool):
        raise CheckpointError(f"{path}: expected format {FORMAT}, got {recipe.get('format')!r}")
    steps = recipe.get("steps")
    if not isinstance(steps, list) or not steps or not all(_is_step(s) for s in steps):
        raise CheckpointError(f"{path}: steps: expected a list of folder names, got {steps!r:.80}")
    if len(set(steps)) < len(steps):
        raise CheckpointError(f"{path}: steps: expected different folders, got {steps!r:.80}")
    return steps


def step_files(layouts: Layouts) -> list[str]:
    """List the names that a step's files have in any layout."""
    return [CONFIG, *(layout.weights for layout in layouts), *_BESIDE]


def adapter_folders(directory: Path) -> list[str]:
    """List the subfolders that hold an adapter."""
    return sorted(
        folder.name
        for folder in directory.iterdir()
        if not folder.name.startswith(".")  # of a save that was broken off
        and any((folder / name).is_file() for name in (RECIPE, CONFIG))
    )


def holds_adapter(folder: Path, layouts: Layouts) -> bool:
    """Return True for a folder with any file of an adapter."""
    names = (CONFIG, RECIPE, *(layout.weights for layout in layouts))
    return any((folder / name).exists() for name in names)


def without_settings(directory: Path, layouts: Layouts) -> CheckpointError:
    """Return the error for a folder without settings, with a guess at its contents."""
    layout, within = layout_by_files(directory, layouts), adapter_folders(directory)
    hint = ""
    if layout is not None:
        hint = f"; it holds weights in {layout.name}'s layout"
    elif within:
        hint = f"; name one of the adapters in it: {', '.join(within)}"
    elif (directory / "config.json").exists():
        hint = "; it is a model's folder"
    return CheckpointError(f"{directory}: expected {RECIPE} or {CONFIG}, got neither{hint}")


def without_weights(folder: Path, layout: FolderLayout, layouts: Layouts) -> CheckpointError:
    """Return the error for a folder without its layout's weights, naming those it has instead."""
    path, never_read = folder / layout.weights, layout.never_read
    if (folder / never_read).is_file():
        why = "a pickle, which can run any code" if never_read.endswith(".bin") else "not read"
        return CheckpointError(
            f"{path} does not exist, and {never_read} is {why}: save it as safetensors, "
            f"{layout.save_again}"
        )
    others = [other for other in layouts if (folder / other.weights).is_file()]
    if others:
        other = others[0]
        hint = f"; {other.weights} belongs to {other.name}'s layout"
    else:  # PEFT's own weights may just not be downloaded
        hint = "" if layout == HUGGING_FACE else f": save the adapter {layout.save_again}"
    return CheckpointError(f"{path} does not exist{hint}")


def named_otherwise(names: Collection[str], layout: FolderLayout, layouts: Layouts) -> list[str]:
    """List the other layout whose names the tensors have, if they do."""
    whose = layout_of_tensors(names, layouts)
    if whose is None or whose == layout:
        return []
    return [f"expected names of {layout.name}'s layout, got those of {whose.name}"]


def layout_of_tensors(names: Collection[str], layouts: Layouts) -> FolderLayout | None:
    """Return the layout that the tensors' names match, if any."""
    for layout in layouts:
        if any(re.fullmatch(layout.tensor_names, name) for name in names):
            return layout
    return None


def _is_step(name: object) -> bool:
    """Return True for the name of the folder itself, or of a direct subfolder on any system."""
    return isinstance(name, str) and re.fullmatch(r"\.|\w[\w-]{0,99}", name, re.ASCII) is not None
