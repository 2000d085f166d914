"""Saving an adapter: writing a record's steps into a folder."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tinygrad_peft.files import Transaction, write_json
from tinygrad_peft.host import Host
from tinygrad_peft.models import checkpoint_path
from tinygrad_peft.nn import Parameter, Transformer
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.serialisation import config_to_dict
from tinygrad_peft.peft.folder_layout import HUGGING_FACE
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.recipes.saved_modules import is_saved_whole
from tinygrad_peft.peft.storage.base_model import base_of
from tinygrad_peft.peft.storage.folder import steps_in
from tinygrad_peft.peft.storage.layout import (
    CONFIG,
    FORMAT,
    ORIGIN,
    RECIPE,
    REPARAMETERIZATION,
    known_layouts,
    step_files,
)
from tinygrad_peft.peft.storage.sentence_head import (
    NOTE,
    note_of,
    save_head,
    split_head,
    without_head,
)
from tinygrad_peft.peft.storage.target_names import given_targets, with_names
from tinygrad_peft.peft.storage.writing import write_tensors

__all__ = ["save_adapter"]


def save_adapter(
    record: Record, model: Transformer, host: Host, save: Transaction, *, flatten: bool = False
) -> None:
    """Write all steps of a record, and the recipe, as a part of a save.

    Reparameterised weights are written with the weights that they are computed from, unless
    `flatten`. Files that another recipe left in the folder are removed.
    """
    folders, layouts = _folders(record.recipe), known_layouts(host)
    for name in {".", *folders, *steps_in(save.folder)}:
        save.within(name).remove(step_files(layouts))
    notes: dict[str, object] = {}
    about: dict[str, object] = {}
    head: dict[str, Parameter] = {}
    for step, (given, name) in enumerate(zip(record.recipe_as_trained(), folders, strict=True)):
        part = save.within(name)
        stored, own_head = split_head(record.stored_parameters(step), model)
        if own_head:
            head, about[NOTE] = own_head, note_of(name, given, model)
        own = without_head(given, model)
        config = with_names(own, record.targets[step])
        if note := given_targets(own, config):
            notes[name] = note
        if stored:
            _write_tensors(part.path(HUGGING_FACE.weights), stored, record.transposed(step))
        if origin := {} if flatten else record.reparameterization(step):
            _write_tensors(part.path(REPARAMETERIZATION), origin)
            if config.flattened() != config:
                _write_config(part.path(ORIGIN), config, model)
        _write_config(part.path(CONFIG), config.flattened(), model)
    save_head(save, model, head)
    about |= {
        "targets": notes,
        "plugins": _distributions(record.recipe, host),
        "base": base_of(model),
    }
    write_json(save.path(RECIPE), {"format": FORMAT, "steps": folders, **about})


def _task_type(model: Transformer, config: PeftConfig) -> str:
    """Return PEFT's task type: "SEQ_CLS" only with a saved head that transformers computes."""
    head = checkpoint_path(model.config, "classifier")
    if model.config.is_usual_classifier and is_saved_whole(config, head):
        return "SEQ_CLS"
    return "CAUSAL_LM" if model.lm_head is not None else "FEATURE_EXTRACTION"


def _folders(recipe: Sequence[PeftConfig]) -> list[str]:
    if len(recipe) == 1:
        return ["."]
    return [f"{step}-{config.peft_type.lower()}" for step, config in enumerate(recipe)]


def _distributions(recipe: Sequence[PeftConfig], host: Host) -> dict[str, str]:
    """Map each method of a recipe to its distribution, unless it was registered by hand."""
    return {
        kind.peft_type.lower(): answer.plugin.distribution
        for answer in host.answers(hookspecs.peft_methods)
        for kind in answer.value
        if answer.plugin.distribution and kind in {type(config) for config in recipe}
    }


def _write_tensors(
    path: Path, parameters: Mapping[str, Parameter], transposed: Collection[str] = ()
) -> None:
    write_tensors(path, {n: p.data.T if n in transposed else p.data for n, p in parameters.items()})


def _write_config(path: Path, config: PeftConfig, model: Transformer) -> None:
    settings = _written(config) | {
        "base_model_name_or_path": model.name_or_path,
        "inference_mode": True,
        "revision": model.revision,
        "task_type": _task_type(model, config),
    }
    write_json(path, dict(sorted(settings.items())))


def _written(config: PeftConfig) -> dict[str, object]:
    """Return the settings without nulls by default: PEFT may not have them for the method."""
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    values = config_to_dict(config).items()
    return {k: v for k, v in values if v is not None or usual.get(k) is not None}
