"""Adapters on disk.

A folder holds `recipe.json`, which lists the steps in their order, and for each step an
`adapter_config.json` and an `adapter_model.safetensors` in Hugging Face PEFT's layout: beside it if
there is one step, in a folder of its own if there are several. `PeftConfig.stored_name` says what a
tensor is called.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from safetensors.numpy import save as safetensors_bytes

from tinygrad_peft.errors import CheckpointError, PluginError, listed, nearest
from tinygrad_peft.models.files import read_json_object, replacing
from tinygrad_peft.models.tensors import FLOATS, StoredTensor, read_header
from tinygrad_peft.nn import Parameter, Transformer
from tinygrad_peft.nn.module import mismatches
from tinygrad_peft.peft.composition import Record
from tinygrad_peft.peft.config import PeftConfig, config_from_dict, config_to_dict
from tinygrad_peft.peft.host import Host

__all__ = ["Head", "check_base", "load_adapter", "read_head", "read_recipe", "save_adapter"]

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
PICKLE = "adapter_model.bin"
PEFTS_HEADS = ("classifier", "score")
# With bias="all" PEFT writes a saved module's bias twice more, by the names of its own wrapper.
_WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.bias$")
FORMAT = 1


@dataclass(frozen=True)
class Head:
    """A classification head by its settings."""

    num_labels: int
    pooling: Literal["cls", "mean"]
    label_names: tuple[str, ...] = ()


def save_adapter(record: Record, model: Transformer, directory: Path) -> None:
    """Write all steps of a record, and the recipe last, when the rest is there.

    What another recipe has left in the folder is removed. Raises CheckpointError where a folder
    cannot be made.
    """
    folders, left = _folders(record.recipe), _left_behind(directory)
    for step, (config, name) in enumerate(zip(record.recipe, folders, strict=True)):
        folder = directory / name
        _make(folder)
        tensors = {
            name: np.asarray(p.data, order="C")
            for name, p in sorted(record.stored_parameters(step).items())
        }
        with replacing(folder / WEIGHTS) as file:
            file.write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))
        settings = config_to_dict(config) | {
            "base_model_name_or_path": None,
            "inference_mode": True,
            "task_type": _task_type(model),
        }
        _write_json(folder / CONFIG, dict(sorted(settings.items())))
    _write_json(directory / RECIPE, {"format": FORMAT, "steps": folders, "base": _base(model)})
    for name in left:
        if name not in folders:
            _remove_step(directory / name)


def read_recipe(directory: Path, host: Host) -> tuple[PeftConfig, ...]:
    """The configs of a folder's steps, in their order.

    Raises:
        CheckpointError: files that are missing or are not what they should be.
        PluginError: no plugin provides a step's method.
        ConfigError: settings that a method does not have.
    """
    return tuple(_read_config(directory / name / CONFIG, host) for name in _steps(directory))


def read_head(directory: Path) -> Head | None:
    """The classification head that the adapter in a folder was trained with, if it had one.

    Raises CheckpointError where recipe.json is broken.
    """
    path = directory / RECIPE
    base = read_json_object(path).get("base") if path.exists() else None
    if not isinstance(base, dict) or base.get("head") != "classification":
        return None
    try:
        return msgspec.convert(base, Head)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: base: {error}") from None


def check_base(model: Transformer, directory: Path) -> None:
    """Raise CheckpointError where the folder says that its base was another kind of model.

    Its weights may fit all the same, and would mean something else: other numbers of heads, another
    pooling, other names of the classes. The vocabulary may differ, for a tokenizer may have gained
    tokens since.
    """
    different = _differing_base(model, directory, _KIND) + _differing_head(model, directory)
    if different:
        raise CheckpointError(f"{directory} was made for another model: {'; '.join(different)}")


def load_adapter(record: Record, model: Transformer, directory: Path) -> None:
    """Give the record's parameters the values in a folder.

    Raises CheckpointError, which lists every tensor that is missing, unexpected, of another shape
    or not of floats, and the shapes of the base that it was made for; then nothing has changed.
    """
    folders = _steps(directory)
    if len(folders) != len(record.recipe):
        raise CheckpointError(
            f"{directory} does not fit: it holds {len(folders)} steps, "
            f"and the model's recipe has {len(record.recipe)}"
        )
    tensors: list[tuple[Parameter, StoredTensor]] = []
    problems: list[str] = []
    for step, name in enumerate(folders):
        path = directory / name / WEIGHTS
        wanted = record.stored_parameters(step)
        found = _stored(path)
        problems += _differences(wanted, found, name)
        tensors += [(p, found[k]) for k, p in wanted.items() if k in found]
    if problems:
        different = _differing_base(model, directory)
        made_for = f" it was made for a model of {'; '.join(different)}" if different else ""
        raise CheckpointError(f"{directory} does not fit:{made_for}\n{listed(problems)}")
    arrays = [tensor.read(parameter.dtype) for parameter, tensor in tensors]
    for (parameter, _), array in zip(tensors, arrays, strict=True):
        parameter.data = array


def _stored(path: Path) -> dict[str, StoredTensor]:
    """What a step's weights file holds. Raises CheckpointError if it is missing or broken."""
    if not path.exists() and path.with_name(PICKLE).exists():
        raise CheckpointError(f"{path} does not exist, and {PICKLE} is a pickle: none is ever read")
    return {k: v for k, v in read_header(path).items() if not _WRAPPED.search(k)}


_KIND = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
_BASE = (*_KIND, "vocab_size")
_HEAD = ("head", "num_labels", "pooling", "label_names")


def _base(model: Transformer) -> dict[str, object]:
    settings = asdict(model.config)
    kept = _BASE + (_HEAD if model.classifier is not None else ())
    return {n: list(v) if isinstance(v := settings[n], tuple) else v for n in kept}  # as in JSON


def _differing_base(
    model: Transformer, directory: Path, names: Collection[str] | None = None
) -> list[str]:
    """What the adapter's base had other than `model`, where the folder says."""
    if not (directory / RECIPE).exists():
        return []
    base = read_json_object(directory / RECIPE).get("base")
    if not isinstance(base, dict):
        return []
    return [
        f"{name} {base.get(name)!r}, and this is {own!r}"
        for name, own in _base(model).items()
        if base.get(name, own) != own and (names is None or name in names)
    ]


def _differing_head(model: Transformer, directory: Path) -> list[str]:
    """What the adapter's classification head does otherwise than the model's, if both have one."""
    head, config = read_head(directory), model.config
    if head is None or model.classifier is None:
        return []
    different = []
    if head.pooling != config.pooling:
        different.append(f"pooling {head.pooling!r}, and this is {config.pooling!r}")
    if head.label_names and config.label_names and head.label_names != config.label_names:
        names = (list(head.label_names), list(config.label_names))
        different.append("label_names {}, and this is {}".format(*names))
    return different


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


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}") from error


def _left_behind(directory: Path) -> list[str]:
    """The steps of whatever adapter is in the folder already."""
    try:
        return _steps(directory)
    except CheckpointError:
        return []


def _remove_step(folder: Path) -> None:
    """Remove a step's files, and its folder if nothing else is in it."""
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read_config(path: Path, host: Host) -> PeftConfig:
    values = read_json_object(path)
    if not isinstance(values.get("peft_type"), str):
        raise CheckpointError(f"{path} names no method: it has no peft_type")
    name = str(values["peft_type"]).lower()
    methods = host.methods()
    if name not in methods:
        raise PluginError(
            f"{path}: no installed plugin provides the method {name!r}"
            f"{nearest(name, methods)} (there are: {', '.join(methods) or 'none'})"
        )
    return config_from_dict(methods[name], _without_absent_heads(values, path), f"{path}: ")


def _without_absent_heads(values: dict[str, object], path: Path) -> dict[str, object]:
    """The settings without those heads that PEFT names for every classifier, and that it has not.

    (PEFT adds "classifier" and "score" to `modules_to_save`, whichever the model has.)
    """
    names = values.get("modules_to_save")
    if values.get("task_type") not in ("SEQ_CLS", "TOKEN_CLS") or not isinstance(names, list):
        return values
    stored = _stored(path.with_name(WEIGHTS))
    kept = [n for n in names if n not in PEFTS_HEADS or any(f".{n}." in key for key in stored)]
    return {**values, "modules_to_save": kept}


def _differences(
    wanted: Mapping[str, Parameter], found: Mapping[str, StoredTensor], folder: str
) -> list[str]:
    where = "" if folder == "." else f"{folder}: "
    problems = mismatches(
        {key: parameter.shape for key, parameter in wanted.items()},
        {key: tensor.shape for key, tensor in found.items()},
    )
    problems += [
        f"wrong dtype: {key} is {tensor.dtype}, expected one of {', '.join(FLOATS)}"
        for key, tensor in found.items()
        if key in wanted and tensor.dtype not in FLOATS
    ]
    return [where + problem for problem in problems]


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
