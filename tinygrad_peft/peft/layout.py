"""Which files an adapter's folder has, which folders its steps, and whose layout it is."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

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
    "Layout",
    "adapter_folders",
    "foreign_weights",
    "layout_of",
    "missing_weights",
    "schema_of",
    "step_folders",
]

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
REPARAMETERIZATION = "reparameterization.safetensors"  # what a step's weights come out of
ORIGIN = "reparameterization.json"  # its settings, where those of the weights are others
PICKLE = "adapter_model.bin"
FORMAT = 1

Layout: TypeAlias = Literal["Hugging Face PEFT", "AdapterHub", "mlx-lm"]

# All three call their settings adapter_config.json, and their weights otherwise.
_WEIGHTS_OF: Mapping[str, Layout] = {
    WEIGHTS: "Hugging Face PEFT",
    PICKLE: "Hugging Face PEFT",
    "adapter.safetensors": "AdapterHub",
    "pytorch_adapter.bin": "AdapterHub",
    "adapters.safetensors": "mlx-lm",
    "adapters.npz": "mlx-lm",
}
_ADAPTERHUBS = frozenset(("hidden_size", "model_class", "model_name", "model_type", "name"))
_MLXS = frozenset(("fine_tune_type", "lora_layers", "lora_parameters", "num_layers"))


def step_folders(directory: Path) -> list[str]:
    """The folders of the steps; a folder without recipe.json is one step, as PEFT writes it.

    Raises CheckpointError where it is no adapter's folder.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    if not (directory / RECIPE).exists():
        if not (directory / CONFIG).exists():
            raise CheckpointError(
                f"{directory}: neither {RECIPE} nor {CONFIG} is there{_instead(directory)}"
            )
        return ["."]
    recipe = read_json_object(directory / RECIPE)
    if recipe.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory / RECIPE}: format {recipe.get('format')!r} is not {FORMAT}"
        )
    steps = recipe.get("steps")
    if not isinstance(steps, list) or not steps or not all(_is_step(s) for s in steps):
        raise CheckpointError(f"{directory / RECIPE}: steps must be a list of folder names")
    if len(set(steps)) < len(steps):
        raise CheckpointError(f"{directory / RECIPE}: steps must be folders of their own")
    return steps


def adapter_folders(directory: Path) -> list[str]:
    """The folders in this one that hold an adapter each."""
    return sorted(
        folder.name
        for folder in directory.iterdir()
        if any((folder / name).is_file() for name in (RECIPE, CONFIG))
    )


def layout_of(directory: Path) -> Layout | None:
    """Whose layout a folder has, by its settings, or by the name of its weights without any.

    Raises CheckpointError where the settings are no JSON object.
    """
    if (directory / CONFIG).is_file():
        return schema_of(read_json_object(directory / CONFIG))
    return next((of for name, of in _WEIGHTS_OF.items() if (directory / name).is_file()), None)


def schema_of(values: Mapping[str, object]) -> Layout | None:
    """Whose adapter_config.json these values are."""
    if "peft_type" in values:
        return "Hugging Face PEFT"
    if "config" in values and len(_ADAPTERHUBS & values.keys()) > 1:
        return "AdapterHub"
    return "mlx-lm" if _MLXS & values.keys() else None


def foreign_weights(folder: Path) -> Path | None:
    """The weights in a folder that have AdapterHub's or mlx-lm's name."""
    places = (folder / name for name in _WEIGHTS_OF if name not in (WEIGHTS, PICKLE))
    return next((place for place in places if place.is_file()), None)


def missing_weights(folder: Path) -> str:
    """That PEFT's file with the weights is missing, and what is there instead."""
    found = [name for name in _WEIGHTS_OF if (folder / name).is_file()]
    if PICKLE in found:
        return (
            f"{folder / WEIGHTS} does not exist, and {PICKLE} is a pickle, which can run any code: "
            "save it as safetensors, with save_pretrained of PEFT"
        )
    other = f"; {found[0]} is {_WEIGHTS_OF[found[0]]}'s name for another layout" if found else ""
    return f"{folder / WEIGHTS} does not exist{other}"


def _instead(directory: Path) -> str:
    """What a folder without settings is, if that can be told."""
    layout, within = layout_of(directory), adapter_folders(directory)
    if layout is not None:
        return f"; it holds weights in {layout}'s layout"
    if within:
        return f"; there are adapters in it, of which one can be named: {', '.join(within)}"
    return "; it is a model's folder" if (directory / "config.json").exists() else ""


def _is_step(name: object) -> bool:
    """Whether a step's folder is the folder itself or one directly in it, on any system."""
    return isinstance(name, str) and re.fullmatch(r"\.|\w[\w-]{0,99}", name, re.ASCII) is not None
