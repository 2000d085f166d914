"""The model that an adapter was made for, as its folder tells."""

import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import msgspec

from tinygrad_peft.errors import BaseModelWarning, CheckpointError, shortened
from tinygrad_peft.models.fetch import name_and_revision
from tinygrad_peft.models.safe_files import read_json_object
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft.layout import CONFIG, RECIPE, base_name, step_folders

__all__ = [
    "Head",
    "base_of",
    "check_base",
    "differing_base",
    "read_base",
    "read_head",
    "warn_of_another_name",
]

_KIND = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
_BASE = (*_KIND, "vocab_size")


@dataclass(frozen=True)
class Head:
    """A classification head by its settings."""

    num_labels: int
    pooling: Literal["cls", "mean"]
    label_names: tuple[str, ...] = ()


def read_head(directory: Path) -> Head | None:
    """The classification head that the adapter in a folder was trained with, if it had one.

    Raises CheckpointError where recipe.json is broken.
    """
    path = directory / RECIPE
    base = read_json_object(path).get("base") if path.exists() else None
    if not isinstance(base, dict) or base.get("head") != "classification":
        return None
    try:
        return msgspec.convert(base, Head)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: base: {error}") from None


def check_base(model: Transformer, directory: Path) -> None:
    """Raise CheckpointError where the folder says that its base was another kind of model.

    Its weights may fit all the same, and would mean something else: other numbers of heads, another
    pooling, other names of the classes. The vocabulary may differ, for a tokenizer may have gained
    tokens since.
    """
    different = differing_base(model, directory, _KIND) + _differing_head(model, directory)
    if different:
        raise CheckpointError(f"{directory} was made for another model: {'; '.join(different)}")


def warn_of_another_name(model: Transformer, directory: Path) -> None:
    """Warn, with BaseModelWarning, where the folder names another base than this one."""
    different = _differing_name(model, directory)
    if different is not None:
        warnings.warn(f"{directory} {different}", BaseModelWarning, stacklevel=4)


def _differing_name(model: Transformer, directory: Path) -> str | None:
    """That the folder's steps were trained on a model of another name, if both have one.

    A model that was copied or moved keeps the last part of its name, which alone is compared, and
    the commits, where both are known. Raises CheckpointError where the folder is broken.
    """
    own = _Name.of(model.name_or_path, model.revision)
    for folder in step_folders(directory):
        values = read_json_object(directory / folder / CONFIG)
        other = _Name.of(base_name(values), values.get("revision"))
        if own and other and own.differs(other):
            return f"was trained on {other}, and this is {own}"
    return None


@dataclass(frozen=True)
class _Name:
    """What a base is called."""

    name: str
    revision: str | None

    @classmethod
    def of(cls, name: object, revision: object) -> "_Name | None":
        """None where it has no name."""
        if not isinstance(name, str) or not name:
            return None
        known, commit = name_and_revision(name)
        return cls(known, revision if isinstance(revision, str) else commit)

    def differs(self, other: "_Name") -> bool:
        last = {re.split(r"[/\\]", each.name.rstrip("/\\"))[-1].lower() for each in (self, other)}
        found = (re.fullmatch("[0-9a-f]{40}", each.revision or "") for each in (self, other))
        commits = {match[0] for match in found if match}  # branches and tags move
        return len(last) > 1 or len(commits) > 1

    def __str__(self) -> str:
        return shortened(repr(f"{self.name}@{self.revision}" if self.revision else self.name))


def base_of(model: Transformer) -> dict[str, object]:
    """What recipe.json tells of a model: its settings."""
    # Not all at once: of a config that msgspec has made, it leaves out what is by default.
    config = model.config
    settings = {f.name: msgspec.to_builtins(getattr(config, f.name)) for f in fields(config)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def read_base(directory: Path) -> TransformerConfig:
    """The settings of the model that the adapter in a folder was made for.

    Raises CheckpointError where the folder does not tell them, as one from elsewhere does not.
    """
    path = directory / RECIPE
    base = read_json_object(path).get("base") if path.exists() else None
    if base is None:
        raise CheckpointError(f"{directory} does not tell the model it is for")
    try:
        return msgspec.convert(base, TransformerConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{directory} does not tell the model it is for: {error}") from None


def differing_base(
    model: Transformer, directory: Path, names: Collection[str] = _BASE
) -> list[str]:
    """What the adapter's base had other than `model`, where the folder says."""
    if not (directory / RECIPE).exists():
        return []
    base = read_json_object(directory / RECIPE).get("base")
    if not isinstance(base, dict):
        return []
    ours = base_of(model)
    return [
        f"{name} {base[name]!r}, and this is {ours[name]!r}"
        for name in names
        if base.get(name, ours[name]) != ours[name]
    ]


def _differing_head(model: Transformer, directory: Path) -> list[str]:
    """What the adapter's classification head does otherwise than the model's, if both have one."""
    head, config = read_head(directory), model.config
    if head is None or model.classifier is None:
        return []
    different = []
    if head.pooling != config.pooling:
        different.append(f"pooling {head.pooling!r}, and this is {config.pooling!r}")
    if head.label_names and config.label_names and head.label_names != config.label_names:
        names = (list(head.label_names), list(config.label_names))
        different.append("label_names {}, and this is {}".format(*names))
    return different
