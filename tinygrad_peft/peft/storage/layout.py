"""The files of an adapter's folder, the folders of its steps, and whose layout each has."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from tinygrad_peft.errors import CheckpointError, ConfigError, PluginError, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.folder_layout import HUGGING_FACE, FolderLayout
from tinygrad_peft.peft.storage.atomic import remove_files, remove_if_empty

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
    "remove_step",
    "stale_files",
    "step_names",
    "without_settings",
    "without_weights",
]

CONFIG, RECIPE = "adapter_config.json", "recipe.json"
REPARAMETERIZATION = "reparameterization.safetensors"  # the weights that a step's come out of
ORIGIN = "reparameterization.json"  # the settings for training, where they differ
_BESIDE = (REPARAMETERIZATION, ORIGIN)
FORMAT = 1

Layouts: TypeAlias = Sequence[FolderLayout]


def known_layouts(host: Host) -> Layouts:
    """Return Hugging Face PEFT's layout, and those that plugins describe.

    Raises PluginError where two plugins describe one layout in two ways.
    """
    found = {HUGGING_FACE.name: HUGGING_FACE}
    for layout in (layout for answer in host.each(hookspecs.foreign_layouts) for layout in answer):
        if found.setdefault(layout.name, layout) != layout:
            raise PluginError(f"two plugins describe the layout {layout.name!r} in two ways")
    return tuple(found.values())


def layout_called(name: object, layouts: Layouts) -> FolderLayout:
    """Return the layout of a name. Raises ConfigError, with the nearest, where there is none."""
    named = {layout.name: layout for layout in layouts}
    if isinstance(name, str) and name in named:
        return named[name]
    known, close = ", ".join(named), nearest(str(name), named)
    raise ConfigError(f"layout: expected one of {known}, got {name!r}{close}")


def layout_by_settings(settings: Mapping[str, object], layouts: Layouts) -> FolderLayout | None:
    """Return the layout that an adapter_config.json belongs to, if any is recognised."""
    return next((layout for layout in layouts if layout.recognises(settings)), None)


def layout_by_files(folder: Path, layouts: Layouts) -> FolderLayout | None:
    """Return the layout that weights have by their name, in a folder without settings."""
    for layout in layouts:
        if any((folder / name).is_file() for name in (layout.weights, layout.never_read)):
            return layout
    return None


def step_names(recipe: Mapping[str, object], path: Path) -> list[str]:
    """Return the folders of the steps that a recipe.json lists, `path` being where it is.

    Raises CheckpointError for another format, and for names that are not the folder itself or
    folders directly in it.
    """
    if recipe.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, got {recipe.get('format')!r}")
    steps = recipe.get("steps")
    if not isinstance(steps, list) or not steps or not all(_is_step(s) for s in steps):
        raise CheckpointError(f"{path}: steps must be a list of folder names")
    if len(set(steps)) < len(steps):
        raise CheckpointError(f"{path}: steps must be folders of their own")
    return steps


def remove_step(folder: Path, layouts: Layouts) -> None:
    """Remove a step's files in any layout, and its folder if nothing else is in it.

    Raises CheckpointError where that is not possible.
    """
    weights = (layout.weights for layout in layouts)
    remove_files(folder / name for name in (CONFIG, *weights, *_BESIDE))
    remove_if_empty(folder)


def stale_files(folder: Path, layout: FolderLayout, layouts: Layouts) -> list[Path]:
    """Return the weights that other layouts would have in a folder, and what they come out of."""
    names = [other.weights for other in layouts if other != layout]
    return [folder / name for name in (*names, *(_BESIDE if layout != HUGGING_FACE else ()))]


def adapter_folders(directory: Path) -> list[str]:
    """Return the folders in this one that hold an adapter each."""
    return sorted(
        folder.name
        for folder in directory.iterdir()
        if any((folder / name).is_file() for name in (RECIPE, CONFIG))
    )


def holds_adapter(folder: Path, layouts: Layouts) -> bool:
    """Return True where any file of an adapter is in a folder."""
    names = (CONFIG, RECIPE, *(layout.weights for layout in layouts))
    return any((folder / name).is_file() for name in names)


def without_settings(directory: Path, layouts: Layouts) -> CheckpointError:
    """Return the error for a folder without settings, with what it seems to be."""
    layout, within = layout_by_files(directory, layouts), adapter_folders(directory)
    hint = ""
    if layout is not None:
        hint = f"; it holds weights in {layout.name}'s layout"
    elif within:
        hint = f"; name one of the adapters in it: {', '.join(within)}"
    elif (directory / "config.json").exists():
        hint = "; it is a model's folder"
    return CheckpointError(f"{directory}: neither {RECIPE} nor {CONFIG} is there{hint}")


def without_weights(folder: Path, layout: FolderLayout, layouts: Layouts) -> CheckpointError:
    """Return the error for a folder without its layout's weights, with what is there instead."""
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
        hint = f"; {other.weights} is {other.name}'s name for another layout"
    else:  # where PEFT's own are missing, its pickle was perhaps not even downloaded
        hint = "" if layout == HUGGING_FACE else f": save the adapter {layout.save_again}"
    return CheckpointError(f"{path} does not exist{hint}")


def named_otherwise(names: Collection[str], layout: FolderLayout, layouts: Layouts) -> list[str]:
    """Tell that tensors have the names of another layout than the settings are in, if they do."""
    whose = layout_of_tensors(names, layouts)
    if whose is None or whose == layout:
        return []
    return [f"the tensors have the names of an adapter of {whose.name}"]


def layout_of_tensors(names: Collection[str], layouts: Layouts) -> FolderLayout | None:
    """Return the layout that tensors have by their names, if any is recognised."""
    for layout in layouts:
        if any(re.fullmatch(layout.tensor_names, name) for name in names):
            return layout
    return None


def _is_step(name: object) -> bool:
    """Return True for the folder itself or one directly in it, on any system."""
    return isinstance(name, str) and re.fullmatch(r"\.|\w[\w-]{0,99}", name, re.ASCII) is not None
