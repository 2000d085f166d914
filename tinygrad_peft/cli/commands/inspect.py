"""`tinygrad-peft inspect`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.cli.text import columns
from tinygrad_peft.errors import (
    LISTED,
    CheckpointError,
    ConfigError,
    listed,
    printable,
    shortened,
)

if TYPE_CHECKING:
    from tinygrad_peft.models.inspection import Report as Inspection
    from tinygrad_peft.models.inspection import Tensors

__all__ = ["inspect"]

# What is shown of each; --json has all.
_SHOWN = 4  # entries of a setting by path that fit in a line
_ROWS = 100  # of the table of tensors


@command
@click.argument("path", type=options.NAME)
@click.option(
    "--model",
    type=options.NAME,
    help="The model to check an adapter against: only its settings are read.",
)
@click.option("--weights", is_flag=True, help="Read the weights too, and report NaN or infinity.")
def inspect(path: str, model: str | None, *, weights: bool) -> Report:
    """Describe a model or an adapter, and list its problems.

    PATH is a folder, or a .gguf or .safetensors file. Reads no weights without --weights. The exit
    status is 1 if anything is wrong.
    """
    from tinygrad_peft.cli.sources import model_path
    from tinygrad_peft.models import load_config
    from tinygrad_peft.models.weight_values import with_value_problems
    from tinygrad_peft.peft import inspect_path

    base = None if model is None else load_config(model_path(model))
    report = inspect_path(_path(path), base=base)
    if base is not None and report.kind == "model":
        raise ConfigError(f"--model {model}: expected an adapter to check against it, got a model")
    if weights:
        report = with_value_problems(report)
    return Report(
        values={"sound": report.sound, **_values(report)},
        lines=[printable(line) for line in _lines(report)],
        status=0 if report.sound else 1,
    )


def _path(text: str) -> Path:
    """Return a path, or where a name is; the hub's repository may hold a model or an adapter.

    Raises DataError for neither.
    """
    from tinygrad_peft.cli.sources import adapter_path, model_path

    try:
        return model_path(text, "model or adapter")
    except CheckpointError:
        return adapter_path(Path(text))


def _values(report: "Inspection") -> dict[str, object]:
    return {
        "path": str(report.path),
        "kind": report.kind,
        "facts": report.facts,
        "tensors": report.tensors,
        "problems": report.problems,
        "notes": report.notes,
        "parts": [_values(part) for part in report.parts],
    }


def _lines(report: "Inspection") -> Iterator[str]:
    yield f"{report.path}: {report.kind}"
    yield from columns([*_facts(report.facts), *_totals(report.tensors)])
    if report.tensors is not None and report.tensors.groups:
        yield ""
        yield from columns(_table(report.tensors))
    yield from _counted("problem", report.problems)
    yield from _counted("note", report.notes)
    for part in report.parts:
        yield ""
        yield from _lines(part)


def _counted(what: str, texts: Sequence[str]) -> Iterator[str]:
    """List texts below their count, if there are any."""
    if texts:
        yield ""
        yield f"{len(texts)} {what}{'s' if len(texts) > 1 else ''}:"
        yield listed(texts)


def _facts(facts: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield name, ", ".join(f"{k}={_text(v)}" for k, v in value.items()) or "all by default"
        elif value is not None:
            yield name, _text(value)


def _totals(tensors: "Tensors | None") -> Iterator[tuple[str, str]]:
    if tensors is not None:
        yield "tensors", f"{tensors.count:,}"
        yield "parameters", f"{tensors.parameters:,}"
        yield "bytes", f"{tensors.bytes:,}"
        yield "dtypes", ", ".join(f"{name} {count:,}" for name, count in tensors.dtypes.items())


def _table(tensors: "Tensors") -> list[tuple[str, ...]]:
    rows = [
        (
            shortened(group.name, 100),
            shortened(str(group.shape), 100),
            group.dtype,
            f"{group.count:,}",
        )
        for group in tensors.groups[:_ROWS]
    ]
    more = len(tensors.groups) - len(rows)
    rest = [(f"... and {more:,} more", "", "", "")] if more else []
    return [("tensor", "shape", "dtype", "times"), *rows, *rest]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping) and len(value) > _SHOWN:
        return f"({len(value):,} entries)"
    if isinstance(value, list | tuple):
        more = [f"... and {len(value) - LISTED:,} more"] if len(value) > LISTED else []
        return ", ".join([*map(_text, value[:LISTED]), *more]) or "none"
    return f"{value:,}" if isinstance(value, int) else shortened(str(value))
