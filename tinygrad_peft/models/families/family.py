"""What a family of checkpoints is: how its config.json reads, and what its tensors are called."""

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

    `prefix` stands before every path of a model that has a head, but not before the head's own.
    """

    model_type: str
    prefix: str
    paths: PathMap
    heads: frozenset[str]  # the checkpoint's paths that have no prefix
    transposed: frozenset[str]  # the last parts of paths whose weight is stored (in, out)
    ignored: Pattern[str]  # tensors that are no weights of the model
    renamed: Mapping[str, str]  # last parts of tensor names from older days, and today's
    architectures: Mapping[str, Head]  # transformers' classes; the first of a head is written
    read: Callable[[Mapping[str, object], Tensors | None], TransformerConfig]
    write: Callable[[TransformerConfig], dict[str, object]]

    def path(self, config: TransformerConfig, path: str) -> str:
        """The checkpoint's path, with the prefix that a model of that config has."""
        theirs = self.paths.theirs(path)
        return theirs if config.head == "none" else self.with_prefix(theirs)

    def with_prefix(self, name: str) -> str:
        """A checkpoint's path as a model with a head has it."""
        bare = not name or name.partition(".")[0] in self.heads
        return name if bare else f"{self.prefix}.{name}"

    def module_path(self, path: str) -> str:
        """Our path for the checkpoint's, with its prefix or without."""
        return self.paths.ours(path.removeprefix(f"{self.prefix}."))

    def bare_name(self, key: str) -> str | None:
        """A tensor's name without the prefix, as it is called today; None where it is ignored."""
        name = key.removeprefix(f"{self.prefix}.")
        if self.ignored.fullmatch(name):
            return None
        stem, _, last = name.rpartition(".")
        return f"{stem}.{self.renamed[last]}" if last in self.renamed else name

    def is_transposed(self, name: str) -> bool:
        """Whether a tensor is stored (in, out)."""
        module, _, kind = name.rpartition(".")
        return kind == "weight" and module.rpartition(".")[2] in self.transposed


def with_head(
    config: TransformerConfig, settings: Settings, head: Head, tensors: Tensors | None, weight: str
) -> TransformerConfig:
    """`config` with the special tokens, the head and, for a classifier, config.json's labels.

    Where it names none, the classifier's tensor `weight` says how many there are.
    """
    tokens = {name: getattr(settings, name) for name in SPECIAL_TOKENS}
    config = dataclasses.replace(config, **tokens)
    if head != "classification":
        return dataclasses.replace(config, head=head)
    stored = (tensors or {}).get(weight, (2,))
    count = len(settings.id2label or ()) or settings.num_labels or stored[0]
    return dataclasses.replace(
        config,
        head=head,
        num_labels=count,
        label_names=settings.label_names,
        pooling=settings.classifier_pooling or "cls",
    )


def head_json(
    config: TransformerConfig,
    model_type: str,
    architectures: Mapping[str, Head],
    *,
    own_pooling: bool,
) -> dict[str, object]:
    """The keys of config.json that say what the model is and which labels it has.

    `own_pooling` says that a classifier pools in a way that transformers' class of that name does
    not know; it is then written down as `classifier_pooling`.

    Raises ConfigError where the family has no such head.
    """
    name = next((name for name, head in architectures.items() if head == config.head), None)
    if name is None:
        raise ConfigError(f"{model_type} has no architecture with a head of kind {config.head!r}")
    common: dict[str, object] = {"model_type": model_type, "architectures": [name]}
    tokens = {name: getattr(config, name) for name in SPECIAL_TOKENS}
    common |= {name: token for name, token in tokens.items() if token is not None}
    if config.head != "classification":
        return common
    names = config.label_names or tuple(f"LABEL_{i}" for i in range(config.num_labels))
    common["id2label"] = {str(i): name for i, name in enumerate(names)}
    common["label2id"] = {name: i for i, name in enumerate(names)}
    return {**common, "classifier_pooling": config.pooling} if own_pooling else common
