"""Adapters in other libraries' layouts: AdapterHub's and mlx-lm's.

What belongs to no method is here: whose layout a folder has, which files it is made of, and that
it is written whole. What a method's settings and tensors are there is its plugin's to say, by the
hooks `read_foreign` and `write_foreign`.
"""

from collections.abc import Mapping
from pathlib import Path

from tinygrad_peft.errors import CheckpointError, ConfigError, listed, nearest, shortened, told
from tinygrad_peft.host import Host
from tinygrad_peft.models.files import read_json_object
from tinygrad_peft.models.tensors import read_header
from tinygrad_peft.nn import Parameter, Transformer, TransformerConfig
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.events import ForeignFolder, ForeignName, ForeignRequest, ForeignStep
from tinygrad_peft.peft.layout import (
    CONFIG,
    LAYOUTS,
    PEFTS,
    RECIPE,
    Layout,
    kind_of,
    remove_step,
    schema_of,
    stale_files,
    steps_left,
    weights_file,
    weights_path,
)
from tinygrad_peft.peft.record import Record
from tinygrad_peft.peft.writing import make_folder, remove_files, write_json, write_tensors

__all__ = ["check_layout", "foreign_places", "read_foreign", "save_foreign"]


def read_foreign(
    folder: Path, host: Host, base: TransformerConfig | None = None
) -> ForeignStep | None:
    """The step in another library's folder; None where it is in Hugging Face PEFT's layout.

    Raises:
        CheckpointError: files that are missing or broken, an adapter of another model, tensors of
            another layout, or one that no plugin reads.
        ConfigError: settings that have no equal here, all of them.
    """
    place = folder / CONFIG
    settings = read_json_object(place)
    layout = schema_of(settings)
    if layout is None or layout == PEFTS:
        return None
    stored = read_header(weights_file(folder, layout))
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    try:
        step = host.one(hookspecs.read_foreign, ForeignFolder(layout, settings, shapes, base))
    except (CheckpointError, ConfigError) as error:
        problems = str(error).splitlines()
        raise type(error)(f"{place}, which is {layout}'s:{told(problems)}") from None
    if step is None:
        kind = shortened(repr(kind_of(layout, settings)), 100)
        raise CheckpointError(f"{place}: no installed plugin reads {kind} in {layout}'s layout")
    return step


def foreign_places(record: Record, step: int, of: ForeignStep) -> dict[ForeignName, Parameter]:
    """The parameters of a record's step, by what they are called in the other library's file."""
    return {of.naming(path, name): p for path, name, p in record.placed_parameters(step)}


def check_layout(layout: object) -> None:
    """Raise ConfigError unless there is such a layout."""
    if layout not in LAYOUTS:
        known, close = ", ".join(LAYOUTS), nearest(str(layout), LAYOUTS)
        raise ConfigError(f"layout {layout!r} is none of {known}{close}")


def save_foreign(
    records: Mapping[str, Record],
    folders: Mapping[str, Path],
    model: Transformer,
    host: Host,
    layout: Layout,
) -> None:
    """Write adapters by their names, each into its folder, in another library's layout.

    Raises ConfigError, and writes nothing, with all that the layout cannot hold; CheckpointError
    where a file or folder cannot be written.
    """
    steps = {name: _expressed(r, model, host, layout, name) for name, r in records.items()}
    for name, step in steps.items():
        _write(folders[name], layout, step, foreign_places(records[name], 0, step))


def _write(
    folder: Path, layout: Layout, step: ForeignStep, places: Mapping[ForeignName, Parameter]
) -> None:
    """Write an adapter, and remove what another layout has left in the folder."""
    arrays = {place.name: p.data.T if place.transposed else p.data for place, p in places.items()}
    left = [name for name in steps_left(folder) if name != "."]
    make_folder(folder)
    write_tensors(weights_path(folder, layout), arrays)
    write_json(folder / CONFIG, dict(sorted(step.settings.items())))
    remove_files((folder / RECIPE, *stale_files(folder, layout)))
    for name in left:
        remove_step(folder / name)


def _expressed(
    record: Record, model: Transformer, host: Host, layout: Layout, adapter: str
) -> ForeignStep:
    """The record's one step as the layout has it."""
    steps: list[ForeignStep] = []
    problems: list[str] = []
    for number, config in enumerate(record.recipe_as_trained()):
        where = f"step {number}: " if len(record.recipe) > 1 else ""
        places = dict.fromkeys(path for path, _, _ in record.placed_parameters(number))
        request = ForeignRequest(
            layout,
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
        problems.insert(0, f"{len(record.recipe)} steps: it holds one")
    if problems:
        raise ConfigError(f"{layout}'s layout cannot hold {adapter!r}:\n{listed(problems)}")
    return steps[0]
