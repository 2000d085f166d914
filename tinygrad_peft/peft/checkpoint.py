"""Adapters on disk.

A folder holds `recipe.json`, which lists the steps in their order, and for each step an
`adapter_config.json` and an `adapter_model.safetensors` in Hugging Face PEFT's layout: beside it if
there is one step, in a folder of its own if there are several. `PeftConfig.stored_name` says what a
tensor is called. Where a step's weights come out of others, as a prefix's out of its projection,
those are beside them in `reparameterization.safetensors`, and the settings with which they are
trained in `reparameterization.json` if they are others. What another library wrote in a layout of
its own is read by way of `foreign`.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tinygrad_peft.errors import CheckpointError, PluginError, listed, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.models.files import read_json_object
from tinygrad_peft.nn import Parameter, Transformer, TransformerConfig
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.foreign import read_foreign
from tinygrad_peft.peft.layout import (
    CONFIG,
    FORMAT,
    ORIGIN,
    PEFTS,
    RECIPE,
    REPARAMETERIZATION,
    WEIGHTS,
    remove_step,
    stale_files,
    step_folders,
    steps_left,
)
from tinygrad_peft.peft.made_for import base_of, differing_base
from tinygrad_peft.peft.matching import Match, match_step, step_tensors
from tinygrad_peft.peft.methods import broken_plugins, methods_of
from tinygrad_peft.peft.record import Record
from tinygrad_peft.peft.settings import config_from_dict, config_to_dict
from tinygrad_peft.peft.spelling import as_given, given_targets, spelt_out
from tinygrad_peft.peft.writing import make_folder, remove_files, write_json, write_tensors

__all__ = [
    "load_adapter",
    "read_recipe",
    "read_step",
    "save_adapter",
]

PEFTS_HEADS = ("classifier", "score")


def save_adapter(
    record: Record, model: Transformer, host: Host, directory: Path, *, flatten: bool = False
) -> None:
    """Write all steps of a record, and the recipe last, when the rest is there.

    Weights that come out of others are written with those unless `flatten`. What another recipe has
    left in the folder is removed. Raises CheckpointError where a file or folder cannot be written.
    """
    folders, left = _folders(record.recipe), steps_left(directory)
    notes: dict[str, object] = {}
    for step, (given, name) in enumerate(zip(record.recipe_as_trained(), folders, strict=True)):
        folder = directory / name
        config = spelt_out(given, record.targets[step])
        if note := given_targets(given, config):
            notes[name] = note
        make_folder(folder)
        _write_tensors(folder / WEIGHTS, record.stored_parameters(step), record.transposed(step))
        origin = {} if flatten else record.reparameterization(step)
        _write_tensors(folder / REPARAMETERIZATION, origin)
        differs = bool(origin) and config.flattened() != config
        _write_config(folder / ORIGIN, config if differs else None, model)
        _write_config(folder / CONFIG, config.flattened(), model)
        remove_files(stale_files(folder, PEFTS))
    about = {
        "targets": notes,
        "plugins": _distributions(record.recipe, host),
        "base": base_of(model),
    }
    write_json(directory / RECIPE, {"format": FORMAT, "steps": folders, **about})
    for name in left:
        if name not in folders:
            remove_step(directory / name)


def read_recipe(
    directory: Path, host: Host, base: TransformerConfig | None = None
) -> tuple[PeftConfig, ...]:
    """The configs of a folder's steps, in their order; `base` is the model that they are for.

    Raises:
        CheckpointError: files that are missing or are not what they should be.
        PluginError: no plugin provides a step's method.
        ConfigError: settings that a method does not have.
    """
    names, path = step_folders(directory), directory / RECIPE
    notes = read_json_object(path).get("targets") if path.exists() else None
    given = notes if isinstance(notes, dict) else {}
    return tuple(as_given(read_step(directory / n, host, base), given.get(n)) for n in names)


def load_adapter(record: Record, model: Transformer, host: Host, directory: Path) -> None:
    """Give the record's parameters the values in the folder that its recipe was read from.

    Raises CheckpointError, which lists every tensor that is missing, unexpected, of another shape
    or not of floats, and the shapes of the base that it was made for; then nothing has changed.
    """
    try:
        _fill(record, model, host, directory)
    except MemoryError:
        raise CheckpointError(f"{directory} asks for more memory than there is") from None


def _fill(record: Record, model: Transformer, host: Host, directory: Path) -> None:
    matches: list[Match] = []
    problems: list[str] = []
    for step, name in enumerate(step_folders(directory)):
        folder = directory / name
        match = match_step(record, step, folder, read_foreign(folder, host, model.config))
        problems += [p if name == "." else f"{name}: {p}" for p in match.problems()]
        matches.append(match)
    if problems:
        different = differing_base(model, directory)
        made_for = f" it was made for a model of {'; '.join(different)}" if different else ""
        raise CheckpointError(f"{directory} does not fit:{made_for}\n{listed(problems)}")
    arrays = [(parameter, array) for match in matches for parameter, array in match.arrays()]
    for parameter, array in arrays:
        parameter.data = array


def _task_type(model: Transformer, config: PeftConfig) -> str:
    """What PEFT is to take the model for: of a classifier it demands the head's weights as well."""
    if model.classifier is not None and "classifier" in config.modules_to_save:
        return "SEQ_CLS"
    return "CAUSAL_LM" if model.lm_head is not None else "FEATURE_EXTRACTION"


def _folders(recipe: Sequence[PeftConfig]) -> list[str]:
    if len(recipe) == 1:
        return ["."]
    return [f"{step}-{config.peft_type.lower()}" for step, config in enumerate(recipe)]


def _settings_file(folder: Path) -> Path:
    """Where a step's settings are: those with which it is trained, if it can be trained on."""
    trained_on = (folder / REPARAMETERIZATION).exists() and (folder / ORIGIN).exists()
    return folder / (ORIGIN if trained_on else CONFIG)


def read_step(folder: Path, host: Host, base: TransformerConfig | None = None) -> PeftConfig:
    """The config in one step's folder. Raises what `read_recipe` raises."""
    if (foreign := read_foreign(folder, host, base)) is not None:
        return foreign.config
    path = _settings_file(folder)
    values = read_json_object(path)
    if not isinstance(values.get("peft_type"), str):
        raise CheckpointError(f"{path} names no method: it has no peft_type")
    name = str(values["peft_type"]).lower()
    methods = methods_of(host)
    if name not in methods:
        raise PluginError(
            f"{path}: no installed plugin provides the method {name!r}"
            f"{_to_install(path.parent, name) or nearest(name, methods)} "
            f"(there are: {', '.join(methods) or 'none'}){broken_plugins(host)}"
        )
    meant = methods[name].as_meant(_without_absent_heads(values, path))
    return config_from_dict(methods[name], meant, f"{path}: ")


def _distributions(recipe: Sequence[PeftConfig], host: Host) -> dict[str, str]:
    """Which distribution provides each method of a recipe, if it is not registered by hand."""
    return {
        kind.peft_type.lower(): answer.plugin.distribution
        for answer in host.answers(hookspecs.peft_methods)
        for kind in answer.value
        if answer.plugin.distribution and kind in {type(config) for config in recipe}
    }


def _to_install(folder: Path, method: str) -> str:
    """What has to be installed for a method, as the recipe that the folder belongs to tells."""
    for recipe in (folder / RECIPE, folder.parent / RECIPE):
        plugins = read_json_object(recipe).get("plugins") if recipe.is_file() else None
        if isinstance(plugins, dict) and isinstance(plugins.get(method), str):
            return f"; the distribution {plugins[method]!r} does: install it"
    return ""


def _without_absent_heads(values: dict[str, object], path: Path) -> dict[str, object]:
    """The settings without those heads that PEFT names for every classifier, and that it has not.

    (PEFT adds "classifier" and "score" to `modules_to_save`, whichever the model has, and for some
    methods twice.)
    """
    names = values.get("modules_to_save")
    if values.get("task_type") not in ("SEQ_CLS", "TOKEN_CLS"):
        return values
    if not isinstance(names, list) or not names:
        return values
    stored = step_tensors(path.parent)
    there = [h for h in PEFTS_HEADS if h in names and any(f".{h}." in key for key in stored)]
    own = [name for name in names if name not in PEFTS_HEADS]
    return {**values, "modules_to_save": [*own, *there]}


def _write_tensors(
    path: Path, parameters: Mapping[str, Parameter], transposed: Collection[str] = ()
) -> None:
    """Write the file; without parameters there is none."""
    if not parameters:
        remove_files([path])
        return
    write_tensors(path, {n: p.data.T if n in transposed else p.data for n, p in parameters.items()})


def _write_config(path: Path, config: PeftConfig | None, model: Transformer) -> None:
    """Write a step's settings; without any there is no file."""
    if config is None:
        remove_files([path])
        return
    settings = _written(config) | {
        "base_model_name_or_path": model.name_or_path,
        "inference_mode": True,
        "revision": model.revision,
        "task_type": _task_type(model, config),
    }
    write_json(path, dict(sorted(settings.items())))


def _written(config: PeftConfig) -> dict[str, object]:
    """The settings but for those that are null by default: PEFT may not have them for a method."""
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    values = config_to_dict(config).items()
    return {k: v for k, v in values if v is not None or usual.get(k) is not None}
