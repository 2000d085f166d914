"""A family of checkpoints: how to read its config.json and name its tensors."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from re import Pattern

from tinygrad_peft.arrays import Shape
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models.families.config_json import Head, Settings
from tinygrad_peft.models.families.paths import PathMap
from tinygrad_peft.nn.config import TransformerConfig

__all__ = ["Family", "Tensors", "head_json", "with_head"]

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
Tensors = Mapping[str, Shape]  # by name without the family's prefix


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type` as data.

    `prefix` precedes every path of a model with a head that transformers has a class for, except
    the head's own.
    """

    model_type: str
    prefix: str
    paths: PathMap
    heads: frozenset[str]  # the checkpoint's paths without the prefix
    transposed: frozenset[str]  # last parts of the paths whose weight is stored (in, out)
    ignored: Pattern[str]  # tensors to skip
    renamed: Mapping[str, str]  # last parts of tensor names: old -> new
    architectures: Mapping[str, Head]  # transformers' classes; the first of a head is written
    read: Callable[[Mapping[str, object], Tensors | None], TransformerConfig]
    write: Callable[[TransformerConfig], dict[str, object]]

    def path(self, config: TransformerConfig, path: str) -> str:
        """Translate our path to the checkpoint's, with the prefix for a model of that config."""
        theirs = self.paths.theirs(path)
        is_bare = config.head == "none" or config.is_sentence_classifier
        return theirs if is_bare else self.with_prefix(theirs)

    @property
    def beginnings(self) -> frozenset[str]:
        """The first parts of the paths that the prefix may precede."""
        return frozenset(path.partition(".")[0] for path in self.paths.pairs.values()) - self.heads

    def with_prefix(self, name: str) -> str:
        """Prefix a checkpoint's path as in a model with a head."""
        bare = not name or name.partition(".")[0] in self.heads
        return name if bare else f"{self.prefix}.{name}"

    def module_path(self, path: str) -> str:
        """Translate the checkpoint's path, with its prefix or without, to ours."""
        return self.paths.ours(path.removeprefix(f"{self.prefix}."))

    def bare_name(self, key: str) -> str | None:
        """Remove the prefix and rename old names; None for a tensor to skip."""
        name = key.removeprefix(f"{self.prefix}.")
        if self.ignored.fullmatch(name):
            return None
        stem, _, last = name.rpartition(".")
        return f"{stem}.{self.renamed[last]}" if last in self.renamed else name

    def is_transposed(self, name: str) -> bool:
        """Tell whether a tensor is stored (in, out)."""
        module, _, kind = name.rpartition(".")
        return kind == "weight" and module.rpartition(".")[2] in self.transposed


def with_head(
    config: TransformerConfig, settings: Settings, head: Head, tensors: Tensors | None, weight: str
) -> TransformerConfig:
    """Add the special tokens, the head and config.json's labels to `config`.

    If it names no labels, the shape of the classifier's tensor `weight` gives their number. An
    encoder's labels are those of a classifier in a sentence-transformers folder.
    """
    tokens = {name: getattr(settings, name) for name in SPECIAL_TOKENS}
    config = dataclasses.replace(config, **tokens)
    named = len(settings.id2label or ())
    if head != "classification":
        return dataclasses.replace(
            config, head=head, num_labels=named, label_names=settings.label_names
        )
    stored = (tensors or {}).get(weight, (2,))
    return dataclasses.replace(
        config,
        head=head,
        num_labels=named or settings.num_labels or stored[0],
        label_names=settings.label_names,
        problem_type=settings.problem_type,
        pooling=settings.classifier_pooling or config.usual_pooling,
    )


def head_json(
    config: TransformerConfig, model_type: str, architectures: Mapping[str, Head]
) -> dict[str, object]:
    """Write the keys of config.json for the model's class, special tokens and labels.

    A classifier that transformers has no class for is written as the bare model.

    Raises ConfigError if the family lacks the head.
    """
    wanted = "none" if config.is_sentence_classifier else config.head
    name = next((name for name, head in architectures.items() if head == wanted), None)
    if name is None:
        raise ConfigError(f"{model_type} has no architecture with a head of kind {config.head!r}")
    common: dict[str, object] = {"model_type": model_type, "architectures": [name]}
    tokens = {name: getattr(config, name) for name in SPECIAL_TOKENS}
    common |= {name: token for name, token in tokens.items() if token is not None}
    if not config.num_labels:
        return common
    names = config.label_names or tuple(f"LABEL_{i}" for i in range(config.num_labels))
    common["id2label"] = {str(i): name for i, name in enumerate(names)}
    common["label2id"] = {name: i for i, name in enumerate(names)}
    return common | ({"problem_type": config.problem_type} if config.problem_type else {})
