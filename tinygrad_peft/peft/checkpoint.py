"""Adapters on disk.

A folder holds `recipe.json`, which lists the steps in their order, and for each step an
`adapter_config.json` and an `adapter_model.safetensors` in Hugging Face PEFT's layout: beside it if
there is one step, in a folder of its own if there are several. A tensor is called
`base_model.model.`, the place in the checkpoint's names, and the parameter's own name there.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save as safetensors_bytes

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError, PluginError, listed, nearest
from tinygrad_peft.nn import Parameter, Transformer
from tinygrad_peft.peft.composition import Record
from tinygrad_peft.peft.config import PeftConfig, config_from_dict, config_to_dict
from tinygrad_peft.peft.host import Host

__all__ = ["load_adapter", "read_recipe", "recipe_head", "save_adapter"]

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
PREFIX = "base_model.model."
FORMAT = 1


def save_adapter(record: Record, model: Transformer, directory: Path) -> None:
    """Write all steps of a record, and the recipe last, when the rest is there."""
    folders = _folders(record.recipe)
    for step, (config, name) in enumerate(zip(record.recipe, folders, strict=True)):
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            PREFIX + path: np.ascontiguousarray(p.data)
            for path, p in sorted(record.named_parameters(step).items())
        }
        write_atomically(folder / WEIGHTS, safetensors_bytes(tensors, metadata={"format": "pt"}))
        settings = config_to_dict(config) | {
            "base_model_name_or_path": None,
            "inference_mode": True,
            "task_type": _task_type(model),
        }
        _write_json(folder / CONFIG, dict(sorted(settings.items())))
    _write_json(directory / RECIPE, {"format": FORMAT, "steps": folders, "base": _base(model)})


def read_recipe(directory: Path, host: Host) -> tuple[PeftConfig, ...]:
    """The configs of a folder's steps, in their order.

    Raises:
        CheckpointError: files that are missing or are not what they should be.
        PluginError: no plugin provides a step's method.
        ConfigError: settings that a method does not have.
    """
    return tuple(_read_config(directory / name / CONFIG, host) for name in _steps(directory))


def recipe_head(directory: Path) -> dict[str, object]:
    """The classification head that the adapter was trained with: its settings in the model."""
    base = _read_json(directory / RECIPE).get("base") if (directory / RECIPE).exists() else None
    return {k: v for k, v in base.items() if k in _HEAD} if isinstance(base, dict) else {}


def load_adapter(record: Record, model: Transformer, directory: Path) -> None:
    """Give the record's parameters the values in a folder.

    Raises CheckpointError, which lists every tensor that is missing, unexpected, of another shape
    or not of floats, and the shapes of the base that it was made for; then nothing has changed.
    """
    folders = _steps(directory)
    if len(folders) != len(record.recipe):
        raise CheckpointError(f"{directory}: {len(folders)} steps for {len(record.recipe)}")
    arrays: list[tuple[Parameter, Array]] = []
    problems: list[str] = []
    for step, name in enumerate(folders):
        path = directory / name / WEIGHTS
        wanted = {PREFIX + k: p for k, p in record.named_parameters(step).items()}
        found = read_tensors(path)
        problems += _differences(wanted, found, name)
        arrays += [(p, found[k]) for k, p in wanted.items() if k in found]
    if problems:
        made_for = _mismatched_base(model, directory)
        raise CheckpointError(f"{directory} does not fit:{made_for}\n{listed(problems)}")
    for parameter, array in arrays:
        parameter.data = array.astype(parameter.dtype)


def read_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file. Raises CheckpointError if it is missing or broken."""
    if not path.is_file():
        pickled = path.with_name("adapter_model.bin").exists()
        hint = "; adapter_model.bin is a pickle, which is never read" if pickled else ""
        raise CheckpointError(f"{path}: no such file{hint}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole, or leave what was there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


_BASE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_HEAD = ("head", "num_labels", "pooling", "label_names")


def _base(model: Transformer) -> dict[str, object]:
    settings = asdict(model.config)
    kept = _BASE + (_HEAD if model.classifier is not None else ())
    return {name: settings[name] for name in kept}


def _mismatched_base(model: Transformer, directory: Path) -> str:
    """What the adapter's base had other than `model`, where the folder says."""
    if not (directory / RECIPE).exists():
        return ""
    base = _read_json(directory / RECIPE).get("base")
    if not isinstance(base, dict):
        return ""
    own = _base(model)
    different = [
        f"{k} {base.get(k)!r}, and this is {v!r}" for k, v in own.items() if base.get(k) != v
    ]
    return f" it was made for a model of {'; '.join(different)}" if different else ""


def _task_type(model: Transformer) -> str | None:
    if model.classifier is not None:
        return "SEQ_CLS"
    return "CAUSAL_LM" if model.lm_head is not None else "FEATURE_EXTRACTION"


def _folders(recipe: Sequence[PeftConfig]) -> list[str]:
    if len(recipe) == 1:
        return ["."]
    return [f"{step}-{config.peft_type.lower()}" for step, config in enumerate(recipe)]


def _steps(directory: Path) -> list[str]:
    """The folders of the steps; a folder without recipe.json is one step, as PEFT writes it."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    if not (directory / RECIPE).exists():
        if not (directory / CONFIG).exists():
            raise CheckpointError(f"{directory}: neither {RECIPE} nor {CONFIG} is there")
        return ["."]
    recipe = _read_json(directory / RECIPE)
    if recipe.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory / RECIPE}: format {recipe.get('format')!r} is not {FORMAT}"
        )
    steps = recipe.get("steps")
    if not isinstance(steps, list) or not steps or not all(_is_plain_name(s) for s in steps):
        raise CheckpointError(f"{directory / RECIPE}: steps must be a list of folder names")
    return steps


def _is_plain_name(name: object) -> bool:
    """Whether a step's folder is the folder itself or one directly in it."""
    return isinstance(name, str) and (name == "." or (name == Path(name).name and name != ".."))


def _read_config(path: Path, host: Host) -> PeftConfig:
    values = _read_json(path)
    name = str(values.get("peft_type", "")).lower()
    methods = host.methods()
    if name not in methods:
        raise PluginError(
            f"{path}: no installed plugin provides the method {name!r}"
            f"{nearest(name, methods)} (there are: {', '.join(methods) or 'none'})"
        )
    return config_from_dict(methods[name], values, f"{path}: ")


def _read_json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: a JSON object is expected")
    return values


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def _differences(
    wanted: Mapping[str, Parameter], found: Mapping[str, Array], folder: str
) -> list[str]:
    where = "" if folder == "." else f"{folder}: "
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    shared = [key for key in wanted if key in found]
    return [
        *(f"{where}missing: {k} {wanted[k].shape}{nearest(k, extra, 1)}" for k in missing),
        *(f"{where}unexpected: {k} {found[k].shape}" for k in extra),
        *(
            f"{where}wrong shape: {k} is {found[k].shape}, expected {wanted[k].shape}"
            for k in shared
            if found[k].shape != wanted[k].shape
        ),
        *(
            f"{where}wrong dtype: {k} is {found[k].dtype}, expected floats"
            for k in shared
            if found[k].dtype.kind != "f"
        ),
    ]
