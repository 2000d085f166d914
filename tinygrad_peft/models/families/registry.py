"""The known families, looked up by a config's `model_type`."""

from collections.abc import Mapping

from tinygrad_peft.errors import ConfigError, nearest
from tinygrad_peft.models.families.bert import BERT
from tinygrad_peft.models.families.family import Family, Tensors
from tinygrad_peft.models.families.gpt2 import GPT2
from tinygrad_peft.models.families.llama import LLAMA
from tinygrad_peft.nn.config import TransformerConfig

__all__ = [
    "FAMILIES",
    "checkpoint_path",
    "config_from_json",
    "config_to_json",
    "equal_names",
    "family",
    "module_path",
]

FAMILIES: Mapping[str, Family] = {f.model_type: f for f in (GPT2, LLAMA, BERT)}
_PREFIXES = {first: f.prefix for f in FAMILIES.values() for first in f.beginnings}


def family(model_type: object) -> Family:
    """Look up a family. Raises ConfigError that lists the known ones."""
    known = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if known is not None:
        return known
    what = "no model_type" if not model_type else f"unknown model_type {model_type!r}"
    raise ConfigError(
        f"{what}, expected one of {', '.join(FAMILIES)}{nearest(str(model_type), FAMILIES, 1)}"
    )


def config_from_json(
    raw: Mapping[str, object], tensors: Tensors | None = None
) -> TransformerConfig:
    """Read a config from the keys of a config.json.

    `tensors`, the shapes in the checkpoint, decide what config.json leaves open: BERT's pooler, and
    the number of unnamed labels.

    Raises:
        ConfigError: an unknown model_type, or settings that are missing, wrong or not supported.
    """
    return family(raw.get("model_type")).read(raw, tensors)


def config_to_json(config: TransformerConfig) -> dict[str, object]:
    """Write the keys of a config.json for transformers. Raises ConfigError without a family."""
    return family(config.model_type).write(config)


def checkpoint_path(config: TransformerConfig, path: str) -> str:
    """Translate the path of a module or weight to transformers' path.

    Hugging Face PEFT matches targets against these paths and writes them to disk:
    `blocks.0.attn.q_proj` of a BERT classifier is `bert.encoder.layer.0.attention.self.query`, and
    of a bare encoder the same without `bert.`. A module unknown to transformers keeps its name
    below the nearest known one (`encoder.layer.0.mlp`), and a config without a model_type keeps
    every path. `module_path` is the inverse.
    """
    known = FAMILIES.get(config.model_type)
    return path if known is None else known.path(config, path)


def is_transposed(config: TransformerConfig, path: str) -> bool:
    """Tell whether transformers stores the weight of the module at its own `path` (in, out)."""
    known = FAMILIES.get(config.model_type)
    return known is not None and known.is_transposed(f"{path}.weight")


def module_path(config: TransformerConfig, path: str) -> str:
    """Translate transformers' path, with the family's prefix or without, to ours."""
    known = FAMILIES.get(config.model_type)
    return path if known is None else known.module_path(path)


def equal_names(path: str) -> tuple[str, ...]:
    """Return a path in the checkpoint's names, and the other names of the same place.

    The classes of transformers differ in the family's prefix alone.

    >>> equal_names("encoder.layer.0.attention.self.query")
    ('encoder.layer.0.attention.self.query', 'bert.encoder.layer.0.attention.self.query')
    >>> equal_names("model.norm.weight")
    ('model.norm.weight', 'norm.weight')
    """
    first, _, rest = path.partition(".")
    if first in _PREFIXES:
        return path, f"{_PREFIXES[first]}.{path}"
    return (path, rest) if _PREFIXES.get(rest.partition(".")[0]) == first else (path,)
