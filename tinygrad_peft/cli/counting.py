"""`tinygrad-peft count`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinygrad_peft.cli.output import columns, emit
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import load_config, named_shape
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import (
    Host,
    Memory,
    count_model,
    count_recipe,
    estimate_full_memory,
    estimate_memory,
    parse_method,
)

__all__ = ["count_parameters"]

FULL = "full"  # no plugin's method: the whole model is trained
STORED = {
    "float32": "float32",
    "float16": "float16",
    "nf4": "NF4, rest in float32",
    "nf4_float16": "NF4, rest in float16",
}


def count_parameters(
    shape: str | None, config: Path | None, specs: Sequence[str], *, as_json: bool
) -> None:
    """Print what methods train on a named shape or on a config.json, and what memory it takes."""
    if (shape is None) == (config is None):
        raise ConfigError("give one of --shape and --config")
    model = named_shape(shape) if shape is not None else _config(config)
    trainable, total, memory = _counted(model, specs)
    values = {
        "shape": shape or str(config),
        "methods": list(specs),
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
    emit(values, [*columns(counts), "", *columns(_table(memory))], as_json=as_json)


def _counted(
    model: TransformerConfig, specs: Sequence[str]
) -> tuple[int, int, Mapping[str, Memory]]:
    """(trainable, all, memory) of the methods, or of training the whole model."""
    if any(spec.partition(":")[0] == FULL for spec in specs):
        if list(specs) != [FULL]:
            raise ConfigError(
                f"--method {FULL}: expected alone and without settings, got {', '.join(specs)}"
            )
        total = count_model(model)
        return total, total, estimate_full_memory(total)
    host = Host.installed()
    recipe = [parse_method(spec, host) for spec in specs]
    trainable, total = count_recipe(model, recipe, host)
    return trainable, total, estimate_memory(model, trainable, total)


def _table(memory: Mapping[str, Memory]) -> list[tuple[str, ...]]:
    """A row for each way of storing the weights, in megabytes."""
    rows = [
        (STORED[name], *map(_mb, (m.weights, m.gradients, m.optimizer, m.training)))
        for name, m in memory.items()
    ]
    return [("memory to train", "weights", "gradients", "AdamW", "in all"), *rows]


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _config(path: Path | None) -> TransformerConfig:
    assert path is not None
    return load_config(path.parent if path.name == "config.json" else path)
