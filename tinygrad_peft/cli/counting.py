"""`tinygrad-peft count`."""

from collections.abc import Sequence
from pathlib import Path

from tinygrad_peft.cli.output import columns, emit
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import load_config, named_shape
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import Host, count_recipe, parse_method

__all__ = ["count_parameters"]

BYTES = {"float32": 4.0, "float16": 2.0, "nf4": 0.5 + 4 / 64}  # NF4: blocks of 64 with one float
ADAM_BYTES = 8.0  # two float32 moments for each trained parameter


def count_parameters(
    shape: str | None, config: Path | None, specs: Sequence[str], *, as_json: bool
) -> None:
    """Print what a recipe trains on a named shape or on a config.json, and what memory it takes."""
    if (shape is None) == (config is None):
        raise ConfigError("give one of --shape and --config")
    model = named_shape(shape) if shape is not None else _config(config)
    host = Host.installed()
    recipe = [parse_method(spec, host.methods()) for spec in specs]
    trainable, total = count_recipe(model, recipe, host)
    memory = {f"weights_{name}": round(total * size) for name, size in BYTES.items()}
    memory |= {"gradients": trainable * 4, "optimizer": round(trainable * ADAM_BYTES)}
    values = {
        "shape": shape or str(config),
        "methods": list(specs),
        "trainable": trainable,
        "total": total,
        "percent": 100 * trainable / total,
        "bytes": memory,
    }
    rows = [
        ("trainable", f"{trainable:,}"),
        ("total", f"{total:,}"),
        ("trained", f"{100 * trainable / total:.4f} %"),
        *((name.replace("_", " "), f"{size / 1e6:,.1f} MB") for name, size in memory.items()),
    ]
    emit(values, columns(rows), as_json=as_json)


def _config(path: Path | None) -> TransformerConfig:
    assert path is not None
    return load_config(path.parent if path.name == "config.json" else path)
