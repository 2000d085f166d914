"""Which files an adapter's folder has, and which folders its steps."""

import re
from pathlib import Path

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models.files import read_json_object

__all__ = [
    "CONFIG",
    "FORMAT",
    "ORIGIN",
    "PICKLE",
    "RECIPE",
    "REPARAMETERIZATION",
    "WEIGHTS",
    "step_folders",
]

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
REPARAMETERIZATION = "reparameterization.safetensors"  # what a step's weights come out of
ORIGIN = "reparameterization.json"  # its settings, where those of the weights are others
PICKLE = "adapter_model.bin"
FORMAT = 1


def step_folders(directory: Path) -> list[str]:
    """The folders of the steps; a folder without recipe.json is one step, as PEFT writes it.

    Raises CheckpointError where it is no adapter's folder.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    if not (directory / RECIPE).exists():
        if not (directory / CONFIG).exists():
            raise CheckpointError(f"{directory}: neither {RECIPE} nor {CONFIG} is there")
        return ["."]
    recipe = read_json_object(directory / RECIPE)
    if recipe.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory / RECIPE}: format {recipe.get('format')!r} is not {FORMAT}"
        )
    steps = recipe.get("steps")
    if not isinstance(steps, list) or not steps or not all(_is_plain_name(s) for s in steps):
        raise CheckpointError(f"{directory / RECIPE}: steps must be a list of folder names")
    if len(set(steps)) < len(steps):
        raise CheckpointError(f"{directory / RECIPE}: steps must be folders of their own")
    return steps


def _is_plain_name(name: object) -> bool:
    """Whether a step's folder is the folder itself or one directly in it, on any system."""
    return isinstance(name, str) and re.fullmatch(r"\.|\w[\w-]*", name, re.ASCII) is not None
