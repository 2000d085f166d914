"""The families that are known, and what follows from a config's `model_type`."""

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
    "family",
    "module_path",
]

FAMILIES: Mapping[str, Family] = {f.model_type: f for f in (GPT2, LLAMA, BERT)}


def family(model_type: object) -> Family:
    """The family of that name. Raises ConfigError that lists those known."""
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
    """What the keys of a config.json ask for.

    `tensors`, the shapes of what the checkpoint holds, decide what config.json leaves open: whether
    BERT has a pooler, and how many unnamed labels there are.

    Raises:
        ConfigError: an unknown model_type, or anything that is missing, wrong or not supported.
    """
    return family(raw.get("model_type")).read(raw, tensors)


def config_to_json(config: TransformerConfig) -> dict[str, object]:
    """The keys of the config.json that transformers needs. Raises ConfigError for no family."""
    return family(config.model_type).write(config)


def checkpoint_path(config: TransformerConfig, path: str) -> str:
    """What transformers calls the module or weight at `path` of a model of that config.

    These are the paths that Hugging Face PEFT matches targets against and writes to disk:
    `blocks.0.attn.q_proj` of a BERT classifier is `bert.encoder.layer.0.attention.self.query`, and
    of a bare encoder the same without `bert.`. A module that transformers does not have keeps its
    name below the nearest one that it has (`encoder.layer.0.mlp`), and a config without a
    model_type keeps every path. `module_path` is the inverse.
    """
    known = FAMILIES.get(config.model_type)
    return path if known is None else known.path(config, path)


def is_transposed(config: TransformerConfig, path: str) -> bool:
    """Whether transformers keeps the weight of the module at its own `path` as (in, out)."""
    known = FAMILIES.get(config.model_type)
    return known is not None and known.is_transposed(f"{path}.weight")


def module_path(config: TransformerConfig, path: str) -> str:
    """Our path for transformers' own, which may have the family's prefix or not."""
    known = FAMILIES.get(config.model_type)
    return path if known is None else known.module_path(path)
