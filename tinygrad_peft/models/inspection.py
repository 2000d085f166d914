"""Reports on a model's folder or file, and on its faults, from headers alone."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from tinygrad_peft.arrays import Shape
from tinygrad_peft.errors import TinygradPeftError
from tinygrad_peft.models.families import FAMILIES
from tinygrad_peft.models.gguf import check_gguf_fit, gguf_config, read_gguf_header
from tinygrad_peft.models.hf import (
    check_fit,
    encoder_folder,
    read_config,
    read_header,
    read_tensors,
)
from tinygrad_peft.models.sentence_transformers import (
    checked_head,
    read_modules,
    read_sentence_config,
)
from tinygrad_peft.nn.config import TransformerConfig

__all__ = [
    "Report",
    "Stored",
    "TensorGroup",
    "Tensors",
    "collected",
    "describe_config",
    "inspect_gguf",
    "inspect_model",
    "inspect_tensors",
    "likeness",
]

T = TypeVar("T")


class Stored(Protocol):
    """A tensor as a header describes it."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class TensorGroup:
    """Tensors whose names differ only in numbers, written `#` in `name`."""

    name: str
    shape: Shape
    dtype: str
    count: int


@dataclass(frozen=True)
class Tensors:
    """A summary of tensors in files.

    Attributes:
        count: number of tensors.
        parameters: number of elements in all.
        bytes: size in the files.
        dtypes: number of elements per dtype.
        groups: tensors by name, with all layers in one group.
    """

    count: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    groups: tuple[TensorGroup, ...]

    @classmethod
    def of(cls, named: Mapping[str, Stored]) -> "Tensors":
        """Summarise tensors by their names."""
        dtypes: Counter[str] = Counter()
        for tensor in named.values():
            dtypes[tensor.dtype] += tensor.size
        groups = Counter((_pattern(k), t.shape, t.dtype) for k, t in named.items())
        return cls(
            count=len(named),
            parameters=sum(tensor.size for tensor in named.values()),
            bytes=sum(tensor.nbytes for tensor in named.values()),
            dtypes=dict(dtypes.most_common()),
            groups=tuple(TensorGroup(*key, count) for key, count in groups.items()),
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report on a folder or a file, and on its faults.

    Attributes:
        path: the folder or file.
        kind: its kind, in a word or two.
        facts: facts from its settings, by name.
        tensors: a summary of its own weights, if it has any.
        problems: its own faults, each worded as an error.
        notes: things in it that change nothing, or are used though they may not be expected.
        parts: reports on its parts: the steps of a recipe, or the adapters in a folder.
    """

    path: Path
    kind: str
    facts: Mapping[str, object] = field(default_factory=dict)
    tensors: Tensors | None = None
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    parts: Sequence["Report"] = ()

    @property
    def sound(self) -> bool:
        """True if neither it nor any part has a problem."""
        return not self.problems and all(part.sound for part in self.parts)


def collected(problems: list[str], ask: Callable[[], T]) -> T | None:
    """Call `ask`; an error of the library's tree joins `problems`, and None is returned."""
    try:
        return ask()
    except TinygradPeftError as error:
        problems.append(str(error))
        return None


def inspect_model(path: Path) -> Report:
    """Inspect a folder in Hugging Face layout, or one of sentence-transformers."""
    problems: list[str] = []
    modules = collected(problems, lambda: read_modules(path))
    place = encoder_folder(path)
    stored = collected(problems, lambda: read_tensors(place))
    checked = stored is not None
    config = collected(
        problems,
        lambda: (
            read_config(place, check_weights=checked)
            if modules is None
            else read_sentence_config(modules, check_weights=checked)
        ),
    )
    if stored is not None and config is not None:
        collected(problems, lambda: check_fit(place))
    if modules is not None and modules.dense is not None and config is not None:
        dense, of = modules.dense, config
        head = collected(problems, lambda: checked_head(dense, of)) or {}
        stored = {**(stored or {}), **{f"{dense.name}.{k}": v for k, v in head.items()}}
    facts = {
        "format": "Hugging Face" if modules is None else "sentence-transformers",
        **({} if modules is None else modules.facts()),
        **({} if config is None else describe_config(config)),
        "tokenizer": (place / "tokenizer.json").is_file(),
    }
    return Report(
        path=path,
        kind="model",
        facts=facts,
        tensors=None if stored is None else Tensors.of(stored),
        problems=problems,
    )


def inspect_gguf(path: Path) -> Report:
    """Inspect a GGUF file."""
    problems: list[str] = []
    header = collected(problems, lambda: read_gguf_header(path))
    if header is None:
        return Report(path=path, kind="model", facts={"format": "GGUF"}, problems=problems)
    config = collected(problems, lambda: gguf_config(path, header))
    if config is not None:
        collected(problems, lambda: check_gguf_fit(path, header, config))
    tokenizer = header.metadata.get("tokenizer.ggml.pre")
    facts = {
        "format": "GGUF",
        "name": header.metadata.get("general.name"),
        "architecture": header.metadata.get("general.architecture"),
        **({} if config is None else describe_config(config)),
        "tokenizer": tokenizer or "tokenizer.ggml.model" in header.metadata,
    }
    return Report(
        path=path,
        kind="model",
        facts=facts,
        tensors=Tensors.of({info.name: info for info in header.tensors}),
        problems=problems,
    )


def inspect_tensors(path: Path, others: Mapping[str, str]) -> Report:
    """Inspect a single safetensors file; `others` as in `likeness`."""
    problems: list[str] = []
    stored = collected(problems, lambda: read_header(path))
    facts = {"format": "safetensors", "like": None if stored is None else likeness(stored, others)}
    tensors = None if stored is None else Tensors.of(stored)
    return Report(path=path, kind="tensors", facts=facts, tensors=tensors, problems=problems)


def describe_config(config: TransformerConfig) -> dict[str, object]:
    """List the settings that tell models apart."""
    heads = {"lm": "language model", "classification": "sequence classifier", "none": "encoder"}
    labels = {
        "labels": list(config.label_names) or config.num_labels,
        "problem_type": config.objective,
    }
    return {
        "family": config.model_type,
        "head": heads[config.head],
        **(labels if config.head == "classification" else {}),
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.head == "lm" and config.tie_word_embeddings,
    }


def _pattern(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


def likeness(names: Iterable[str], others: Mapping[str, str]) -> str | None:
    """Name what writes tensors of these names: one of `others`, a family of models, or None.

    `others` has a regular expression for each, and one name must match it in full.
    """
    known = list(names)
    for what, pattern in others.items():
        if any(re.fullmatch(pattern, name) for name in known):
            return what
    for family in FAMILIES.values():
        bare = [family.bare_name(name) for name in known]
        if any(name is not None and family.paths.ours(name) != name for name in bare):
            return f"a model of the family {family.model_type}"
    return None
