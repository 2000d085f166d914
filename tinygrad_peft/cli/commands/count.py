"""`tinygrad-peft count`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.cli.text import columns
from tinygrad_peft.errors import ConfigError, nearest

if TYPE_CHECKING:
    from tinygrad_peft.nn import TransformerConfig
    from tinygrad_peft.peft import Memory

__all__ = ["count"]

FULL = "full"  # not a plugin's method: the whole model is trained


@command
@click.option("--shape", help="A named shape, such as llama-7b, gpt2 or bert-base.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="A config.json, or the folder it is in."
)
@options.method(f"{options.METHOD_HELP} `{FULL}`, alone, trains the whole model.")
def count(shape: str | None, config: Path | None, methods: tuple[str, ...]) -> Report:
    """Count the parameters that methods train, and the memory it takes. Needs no weights."""
    trainable, total, memory = _counted(_shape(shape, config), methods)
    values = {
        "shape": shape or str(config),
        "methods": list(methods),
        "trainable": trainable,
        "total": total,
        "percent": 100 * trainable / total,
        "bytes": {
            name: {
                "weights": m.weights,
                "gradients": m.gradients,
                "optimizer": m.optimizer,
                "training": m.training,
            }
            for name, m in memory.items()
        },
    }
    counts = [
        ("trainable", f"{trainable:,}"),
        ("total", f"{total:,}"),
        ("trained", f"{100 * trainable / total:.4f} %"),
    ]
    return Report(values=values, lines=[*columns(counts), "", *columns(_table(memory))])


def _shape(name: str | None, path: Path | None) -> "TransformerConfig":
    from tinygrad_peft.models import load_config, named_shape

    if name is not None and path is None:
        return named_shape(name)
    if path is not None and name is None:
        return load_config(path.parent if path.name == "config.json" else path)
    raise ConfigError("give one of --shape and --config")


def _counted(
    model: "TransformerConfig", specs: Sequence[str]
) -> "tuple[int, int, Mapping[str, Memory]]":
    """Return (trainable, all, memory) of the methods, or of training the whole model."""
    from tinygrad_peft.peft import (
        Host,
        count_model,
        count_recipe,
        estimate_full_memory,
        estimate_memory,
        methods_of,
        parse_method,
    )

    if any(spec.partition(":")[0] == FULL for spec in specs):
        if list(specs) != [FULL]:
            raise ConfigError(
                f"--method {FULL}: expected alone and without settings, got {', '.join(specs)}"
            )
        total = count_model(model)
        return total, total, estimate_full_memory(total)
    host = Host.installed()
    for spec in specs:
        _suggest_full(spec, methods_of(host))
    recipe = [parse_method(spec, host) for spec in specs]
    trainable, total = count_recipe(model, recipe, host)
    return trainable, total, estimate_memory(model, trainable, total, host)


def _suggest_full(spec: str, methods: Collection[str]) -> None:
    """Raise ConfigError for a misspelt `full`, which the parser of methods does not know."""
    name = spec.partition(":")[0].strip().lower()
    close = nearest(name, [*methods, FULL], 1)
    if name not in methods and repr(FULL) in close:
        raise ConfigError(f"no method is called {name!r}{close}")


def _table(memory: "Mapping[str, Memory]") -> list[tuple[str, ...]]:
    """Return a row for each way of storing the weights, in megabytes."""
    rows = [
        (_stored(name), *map(_mb, (m.weights, m.gradients, m.optimizer, m.training)))
        for name, m in memory.items()
    ]
    return [("memory to train", "weights", "gradients", "AdamW", "in all"), *rows]


def _stored(name: str) -> str:
    """Return `NF4, rest in float16` for "nf4_float16"."""
    if name in ("float32", "float16"):
        return name
    packed = name.removesuffix("_float16")
    return f"{packed.upper()}, rest in {'float32' if name == packed else 'float16'}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
