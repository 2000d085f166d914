"""Adapters in other libraries' layouts.

This module recognises and writes the folder for any method. Plugins translate the settings and
tensors, in the hooks `read_foreign` and `write_foreign`.
"""

from collections.abc import Mapping

from tinygrad_peft.errors import CheckpointError, ConfigError, listed, shortened, told
from tinygrad_peft.files import Transaction, write_json
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Parameter, Transformer, TransformerConfig
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.folder_layout import FolderLayout
from tinygrad_peft.peft.hook_types import ForeignFolder, ForeignName, ForeignRequest, ForeignStep
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.storage.folder import StepFolder, steps_in
from tinygrad_peft.peft.storage.layout import (
    CONFIG,
    RECIPE,
    Layouts,
    known_layouts,
    step_files,
)
from tinygrad_peft.peft.storage.writing import write_tensors

__all__ = ["foreign_places", "read_foreign", "save_foreign"]


def read_foreign(step: StepFolder, host: Host, base: TransformerConfig | None) -> ForeignStep:
    """Read the step in a folder of another library's layout, for the model `base` if known.

    Raises:
        CheckpointError: missing weights, an adapter of another model, tensors of another layout, or
            an adapter that no plugin reads.
        ConfigError: every setting without an equivalent here.
    """
    place, layout = step.path / CONFIG, step.layout
    shapes = {name: tensor.shape for name, tensor in step.weights().items()}
    settings = step.settings or {}
    try:
        found = host.one(hookspecs.read_foreign, ForeignFolder(layout.name, settings, shapes, base))
    except (CheckpointError, ConfigError) as error:
        problems = str(error).splitlines()
        raise type(error)(f"{place} (of {layout.name}):{told(problems)}") from None
    if found is None:
        kind = shortened(repr(layout.kind_of(settings)), 100)
        raise CheckpointError(
            f"{place}: no installed plugin reads {kind} in {layout.name}'s layout"
        )
    return found


def foreign_places(record: Record, step: int, of: ForeignStep) -> dict[ForeignName, Parameter]:
    """Return the parameters of a record's step by their names in the other library's file."""
    return {of.naming(path, name): p for path, name, p in record.parameters_by_path(step)}


def save_foreign(
    records: Mapping[str, Record],
    parts: Mapping[str, Transaction],
    model: Transformer,
    host: Host,
    layout: FolderLayout,
) -> None:
    """Write adapters by their names, each as its part of a save, in another library's layout.

    Raises ConfigError with everything that the layout cannot hold.
    """
    steps = {name: _expressed(r, model, host, layout, name) for name, r in records.items()}
    for name, step in steps.items():
        places = foreign_places(records[name], 0, step)
        _write(parts[name], layout, step, places, known_layouts(host))


def _write(
    save: Transaction,
    layout: FolderLayout,
    step: ForeignStep,
    places: Mapping[ForeignName, Parameter],
    layouts: Layouts,
) -> None:
    """Write an adapter, and remove another layout's files from the folder."""
    arrays = {place.name: p.data.T if place.transposed else p.data for place, p in places.items()}
    for name in {".", *steps_in(save.folder)}:
        save.within(name).remove(step_files(layouts))
    save.remove([RECIPE])
    write_tensors(save.path(layout.weights), arrays)
    write_json(save.path(CONFIG), dict(sorted(step.settings.items())))


def _expressed(
    record: Record, model: Transformer, host: Host, layout: FolderLayout, adapter: str
) -> ForeignStep:
    """Translate the record's one step for the other library."""
    steps: list[ForeignStep] = []
    problems: list[str] = []
    for number, config in enumerate(record.recipe_as_trained()):
        where = f"step {number}: " if len(record.recipe) > 1 else ""
        places = dict.fromkeys(path for path, _, _ in record.parameters_by_path(number))
        request = ForeignRequest(
            layout.name,
            adapter,
            tuple(places),
            model.config,
            model.name_or_path,
        )
        try:
            step = host.one(hookspecs.write_foreign, config.flattened(), request)
        except ConfigError as error:
            problems += [f"{where}{line}" for line in str(error).splitlines()]
            continue
        if step is None:
            method = config.peft_type.lower()
            problems.append(f"{where}no installed plugin writes {method} in it")
        else:
            steps.append(step)
    if len(record.recipe) > 1:
        problems.insert(0, f"steps: expected 1, got {len(record.recipe)}")
    if problems:
        raise ConfigError(f"{layout.name}'s layout cannot hold {adapter!r}:\n{listed(problems)}")
    return steps[0]
