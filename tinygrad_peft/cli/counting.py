"""`tinygrad-peft count`."""

from collections.abc import Sequence
from pathlib import Path

from tinygrad_peft.cli.output import columns, emit
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import load_config, named_shape
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import Host, Memory, count_recipe, estimate_memory, parse_method

__all__ = ["count_parameters"]

STORED = {
    "float32": "float32",
    "float16": "float16",
    "nf4": "NF4, rest in float32",
    "nf4_float16": "NF4, rest in float16",
}


def count_parameters(
    shape: str | None, config: Path | None, specs: Sequence[str], *, as_json: bool
) -> None:
    """Print what a recipe trains on a named shape or on a config.json, and what memory it takes."""
    if (shape is None) == (config is None):
        raise ConfigError("give one of --shape and --config")
    model = named_shape(shape) if shape is not None else _config(config)
    host = Host.installed()
    recipe = [parse_method(spec, host) for spec in specs]
    trainable, total = count_recipe(model, recipe, host)
    memory = estimate_memory(model, trainable, total)
    values = {
        "shape": shape or str(config),
        "methods": list(specs),
        "trainable": trainable,
        "total": total,
        "percent": 100 * trainable / total,
        "bytes": {
            **{f"weights_{name}": size for name, size in memory.weights.items()},
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            **{f"training_{name}": size for name, size in memory.training.items()},
        },
    }
    counts = [
        ("trainable", f"{trainable:,}"),
        ("total", f"{total:,}"),
        ("trained", f"{100 * trainable / total:.4f} %"),
    ]
    emit(values, [*columns(counts), "", *columns(_table(memory))], as_json=as_json)


def _table(memory: Memory) -> list[tuple[str, ...]]:
    """A row for each way of storing the weights, in megabytes."""
    rows = [
        (STORED[name], _mb(size), _mb(memory.gradients), _mb(memory.optimizer), _mb(whole))
        for (name, size), whole in zip(
            memory.weights.items(), memory.training.values(), strict=True
        )
    ]
    return [("memory to train", "weights", "gradients", "AdamW", "in all"), *rows]


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _config(path: Path | None) -> TransformerConfig:
    assert path is not None
    return load_config(path.parent if path.name == "config.json" else path)
