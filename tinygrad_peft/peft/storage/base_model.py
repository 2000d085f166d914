"""The model that an adapter was made for, as its folder describes it."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import msgspec

from tinygrad_peft.errors import CheckpointError, shortened
from tinygrad_peft.models.fetch import name_and_revision
from tinygrad_peft.nn import Transformer, TransformerConfig

__all__ = [
    "KIND",
    "BaseName",
    "Head",
    "base_in",
    "base_of",
    "differing_base",
    "differing_head",
    "head_in",
]

KIND = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Head:
    """The settings of a classification head."""

    num_labels: int
    pooling: Literal["cls", "mean"]
    label_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class BaseName:
    """The name of a base model, and its revision if known."""

    name: str
    revision: str | None

    @classmethod
    def of(cls, name: object, revision: object) -> "BaseName | None":
        """Return None where it has no name."""
        if not isinstance(name, str) or not name:
            return None
        known, commit = name_and_revision(name)
        return cls(known, revision if isinstance(revision, str) else commit)

    def differs(self, other: "BaseName") -> bool:
        """Compare the last part of the name, which a model keeps where it is moved, and commits."""
        last = {re.split(r"[/\\]", each.name.rstrip("/\\"))[-1].lower() for each in (self, other)}
        found = (re.fullmatch("[0-9a-f]{40}", each.revision or "") for each in (self, other))
        commits = {match[0] for match in found if match}  # branches and tags move
        return len(last) > 1 or len(commits) > 1

    def __str__(self) -> str:
        return shortened(repr(f"{self.name}@{self.revision}" if self.revision else self.name))


def base_of(model: Transformer) -> dict[str, object]:
    """Return what recipe.json keeps of a model: its settings."""
    # Not all at once: of a config that msgspec has made, it leaves out what is by default.
    config = model.config
    settings = {f.name: msgspec.to_builtins(getattr(config, f.name)) for f in fields(config)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def base_in(recipe: Mapping[str, object]) -> TransformerConfig | None:
    """Return the settings of the model that a recipe.json describes, if it does.

    It is a note for convenience: one that makes no sense counts as none.
    """
    try:
        return msgspec.convert(recipe.get("base"), TransformerConfig)
    except msgspec.ValidationError:
        return None


def head_in(recipe: Mapping[str, object], path: Path) -> Head | None:
    """Return the classification head that a recipe.json describes, if any.

    Raises CheckpointError, which begins with `path`, where the description makes no sense.
    """
    base = recipe.get("base")
    if not isinstance(base, dict) or base.get("head") != "classification":
        return None
    try:
        return msgspec.convert(base, Head)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: base: {error}") from None


def differing_base(
    model: Transformer, recipe: Mapping[str, object], names: Collection[str] = KIND
) -> list[str]:
    """Return how the base in a recipe.json differs from `model` in the settings of these names."""
    base = recipe.get("base")
    if not isinstance(base, dict):
        return []
    ours = base_of(model)
    return [
        f"{name} {base[name]!r}, and this is {ours[name]!r}"
        for name in names
        if base.get(name, ours[name]) != ours[name]
    ]


def differing_head(model: Transformer, head: Head | None) -> list[str]:
    """Return how a classification head differs from the model's, if both exist."""
    config, different = model.config, []
    if head is None or model.classifier is None:
        return []
    if head.pooling != config.pooling:
        different.append(f"pooling {head.pooling!r}, and this is {config.pooling!r}")
    if head.label_names and config.label_names and head.label_names != config.label_names:
        names = (list(head.label_names), list(config.label_names))
        different.append("label_names {}, and this is {}".format(*names))
    return different
