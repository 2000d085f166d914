"""Which files an adapter's folder has, which folders its steps, and whose layout it is."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models.safe_files import read_json_object
from tinygrad_peft.peft.writing import remove_files, remove_if_empty

__all__ = [
    "CONFIG",
    "FORMAT",
    "LAYOUTS",
    "ORIGIN",
    "PEFTS",
    "PICKLE",
    "RECIPE",
    "REPARAMETERIZATION",
    "WEIGHTS",
    "Layout",
    "adapter_folders",
    "base_name",
    "kind_of",
    "layout_of",
    "remove_step",
    "schema_of",
    "stale_files",
    "step_folders",
    "steps_left",
    "weights_file",
    "weights_path",
]

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
REPARAMETERIZATION = "reparameterization.safetensors"  # what a step's weights come out of
ORIGIN = "reparameterization.json"  # its settings, where those of the weights are others
_BESIDE = (REPARAMETERIZATION, ORIGIN)
PICKLE = "adapter_model.bin"
FORMAT = 1

Layout: TypeAlias = Literal["Hugging Face PEFT", "AdapterHub", "mlx-lm"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
PEFTS: Layout = "Hugging Face PEFT"

# All three call their settings adapter_config.json, and their weights otherwise.
_WEIGHTS: Mapping[Layout, str] = {
    "Hugging Face PEFT": WEIGHTS,
    "AdapterHub": "adapter.safetensors",
    "mlx-lm": "adapters.safetensors",
}
_NEVER_READ: Mapping[Layout, str] = {
    "Hugging Face PEFT": PICKLE,
    "AdapterHub": "pytorch_adapter.bin",
    "mlx-lm": "adapters.npz",
}
_BASE_NAMES: Mapping[Layout, str] = {
    "Hugging Face PEFT": "base_model_name_or_path",
    "AdapterHub": "model_name",
    "mlx-lm": "model",
}
_SAVE_AGAIN: Mapping[Layout, str] = {
    "Hugging Face PEFT": "with save_pretrained of PEFT",
    "AdapterHub": "with save_adapter(..., use_safetensors=True) of AdapterHub's adapters",
    "mlx-lm": "with a current mlx-lm",
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


def steps_left(directory: Path) -> list[str]:
    """The folders of the steps of whatever adapter is in the folder already."""
    try:
        return step_folders(directory)
    except CheckpointError:
        return []


def remove_step(folder: Path) -> None:
    """Remove a step's files in whatever layout, and its folder if nothing else is in it.

    Raises CheckpointError where that is not possible.
    """
    remove_files(folder / name for name in (CONFIG, *_WEIGHTS.values(), *_BESIDE))
    remove_if_empty(folder)


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
    names = ((name, of) for of in LAYOUTS for name in (_WEIGHTS[of], _NEVER_READ[of]))
    return next((of for name, of in names if (directory / name).is_file()), None)


def schema_of(values: Mapping[str, object]) -> Layout | None:
    """Whose adapter_config.json these values are."""
    if "peft_type" in values:
        return "Hugging Face PEFT"
    if "config" in values and len(_ADAPTERHUBS & values.keys()) > 1:
        return "AdapterHub"
    return "mlx-lm" if _MLXS & values.keys() else None


def base_name(values: Mapping[str, object]) -> object:
    """What these values of an adapter_config.json call the model that it was trained on."""
    return values.get(_BASE_NAMES[schema_of(values) or PEFTS])


def kind_of(layout: Layout, settings: Mapping[str, object]) -> str:
    """What another library calls the kind of adapter that its settings are of."""
    config = settings.get("config")
    if layout == "AdapterHub":
        named = config.get("architecture") if isinstance(config, Mapping) else None
        return "bottleneck" if named is None else str(named)
    return str(settings.get("fine_tune_type", "lora"))


def weights_path(folder: Path, layout: Layout) -> Path:
    """Where the weights are in a folder of that layout."""
    return folder / _WEIGHTS[layout]


def weights_file(folder: Path, layout: Layout) -> Path:
    """The file with the weights in a folder of that layout.

    Raises CheckpointError, which tells what is there instead, where it is missing.
    """
    path = weights_path(folder, layout)
    if path.exists():
        return path
    if (folder / _NEVER_READ[layout]).is_file():
        name = _NEVER_READ[layout]
        why = "a pickle, which can run any code" if name.endswith(".bin") else "not read"
        raise CheckpointError(
            f"{path} does not exist, and {name} is {why}: save it as safetensors, "
            f"{_SAVE_AGAIN[layout]}"
        )
    others = {of: name for of, name in _WEIGHTS.items() if (folder / name).is_file()}
    told = [f"; {name} is {of}'s name for another layout" for of, name in others.items()]
    if not told and layout != PEFTS:  # its pickle is not even downloaded
        told = [f": save the adapter {_SAVE_AGAIN[layout]}"]
    raise CheckpointError(f"{path} does not exist{''.join(told[:1])}")


def stale_files(folder: Path, layout: Layout) -> list[Path]:
    """The weights that other layouts would have in a folder, and what they come out of."""
    names = [name for of, name in _WEIGHTS.items() if of != layout]
    return [folder / name for name in (*names, *(_BESIDE if layout != PEFTS else ()))]


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
