"""The model that an adapter was made for, as described in its folder."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import msgspec

from tinygrad_peft.errors import CheckpointError, shortened
from tinygrad_peft.models.fetch import name_and_revision
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.nn.config import Pooling, ProblemType

__all__ = [
    "HEADS",
    "KIND",
    "BaseName",
    "Head",
    "base_in",
    "base_of",
    "differing_base",
    "differing_head",
    "head_in",
]

HEADS = ("classifier", "score")  # names of a head in a file
KIND = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Head:
    """The settings of a classification head. `pooling` None: as transformers' class has it."""

    num_labels: int
    pooling: Pooling | None
    label_names: tuple[str, ...] = ()
    pooler: bool = False
    problem_type: ProblemType | None = None
    sentence_transformers: bool = False
    max_seq_length: int | None = None

    @property
    def has_pooler(self) -> bool:
        """True if the first token goes through a pooler."""
        return self.pooler and not self.sentence_transformers

    @property
    def new_pooling(self) -> Pooling | None:
        """The pooling to make it with; None: as transformers' class has it, with its pooler."""
        return None if self.pooling == "cls" and self.has_pooler else self.pooling

    @property
    def call(self) -> str:
        """The call that gives a model this head."""
        pooling = f", pooling={self.new_pooling!r}" if self.new_pooling else ""
        return f"with_classifier({list(self.label_names) or self.num_labels}{pooling})"

    def give(self, model: Transformer) -> None:
        """Give the model this head, with new weights."""
        model.with_classifier(self.label_names or self.num_labels, pooling=self.new_pooling)
        model.config = replace(
            model.config, max_seq_length=self.max_seq_length, problem_type=self.problem_type
        )

    def is_on(self, model: Transformer) -> bool:
        """Return True if the model has this head, with as many classes and the same names."""
        config = model.config
        if model.classifier is None or config.num_labels != self.num_labels:
            return False
        named = not self.label_names or self.label_names == config.label_names
        return named and not differing_head(model, self)


@dataclass(frozen=True)
class BaseName:
    """The name of a base model, and its revision if known."""

    name: str
    revision: str | None

    @classmethod
    def of(cls, name: object, revision: object) -> "BaseName | None":
        """Parse a name and a revision; None if there is no name."""
        if not isinstance(name, str) or not name:
            return None
        known, commit = name_and_revision(name)
        return cls(known, revision if isinstance(revision, str) else commit)

    def differs(self, other: "BaseName") -> bool:
        """Compare the last part of the names, which moving a model keeps, and the commits."""
        last = {re.split(r"[/\\]", each.name.rstrip("/\\"))[-1].lower() for each in (self, other)}
        found = (re.fullmatch("[0-9a-f]{40}", each.revision or "") for each in (self, other))
        commits = {match[0] for match in found if match}  # branches and tags move
        return len(last) > 1 or len(commits) > 1

    def __str__(self) -> str:
        return shortened(repr(f"{self.name}@{self.revision}" if self.revision else self.name))


def base_of(model: Transformer) -> dict[str, object]:
    """Return the settings of a model that recipe.json keeps."""
    # Field by field: msgspec leaves out defaults of a config that it has made itself.
    config = model.config
    settings = {f.name: msgspec.to_builtins(getattr(config, f.name)) for f in fields(config)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def base_in(recipe: Mapping[str, object]) -> TransformerConfig | None:
    """Return the settings of the model that a recipe.json describes, if any.

    The note is for convenience only: an invalid one is ignored.
    """
    try:
        return msgspec.convert(recipe.get("base"), TransformerConfig)
    except msgspec.ValidationError:
        return None


def head_in(recipe: Mapping[str, object], path: Path) -> Head | None:
    """Return the classification head that a recipe.json describes, if any.

    Raises CheckpointError, which begins with `path`, for an invalid description.
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
    """List the named settings in which the base in a recipe.json differs from `model`."""
    base = recipe.get("base")
    if not isinstance(base, dict):
        return []
    ours = base_of(model)
    return [
        f"{name}: expected {base[name]!r}, got {ours[name]!r}"
        for name in names
        if base.get(name, ours[name]) != ours[name]
    ]


def differing_head(model: Transformer, head: Head | None) -> list[str]:
    """List the differences of a classification head from the model's, if both exist."""
    config, different = model.config, []
    if head is None or model.classifier is None:
        return []
    pooler = head.has_pooler or head.pooling is None
    wanted, got = (
        _pooling(head.pooling or config.usual_pooling, pooler),
        _pooling(config.pooling, config.pooler and not config.sentence_transformers),
    )
    if wanted != got:
        different.append(f"pooling: expected {wanted}, got {got}")
    described = replace(config, num_labels=head.num_labels, problem_type=head.problem_type)
    if head.pooling is not None and described.objective != config.objective:
        different.append(f"problem_type: expected {described.objective}, got {config.objective}")
    if head.label_names and config.label_names and head.label_names != config.label_names:
        names = (list(head.label_names), list(config.label_names))
        different.append("label_names: expected {}, got {}".format(*names))
    return different


def _pooling(pooling: Pooling, pooler: bool) -> str:  # noqa: FBT001
    return f"{pooling!r} through a pooler" if pooling == "cls" and pooler else repr(pooling)
