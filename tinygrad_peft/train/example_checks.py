"""Checks of the examples, before any time is spent on training."""

from collections.abc import Iterator

from tinygrad_peft.errors import DataError, listed
from tinygrad_peft.nn import Transformer
from tinygrad_peft.nn.heads import require_one_class
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft.train.labels import has_labels

__all__ = ["check_examples"]


def check_examples(
    data: EncodedData,
    purpose: str,
    *,
    classes: bool | None = None,
    max_length: int | None = None,
    model: object = None,
) -> bool:
    """Return True for texts to classify, and False for texts to continue.

    `classes` is the expected answer; by default, the one that fits the first example. A
    transformer, adapted or not, needs a position for each token. Raises DataError that lists every
    bad example, counted from 0, and ConfigError for a head whose texts have no class each.
    """
    if not data:
        raise DataError(f"{purpose} examples: expected at least one, got none")
    if classes is None:
        classes = isinstance(data[0].labels, int)
    bare = model.base_model if isinstance(model, PeftModel) else model
    if classes and isinstance(bare, Transformer):
        require_one_class(bare.config)
    positions, virtual = _room(bare)
    problems = [
        f"example {place}: {problem}"
        for place, row in enumerate(data)
        for problem in (
            *_problems(row, classes=classes, max_length=max_length),
            *_too_long(row, positions, virtual),
        )
    ]
    if problems:
        raise DataError(f"invalid {purpose} examples:\n{listed(problems)}")
    return classes


def _problems(row: Encoded, *, classes: bool, max_length: int | None) -> Iterator[str]:
    length = len(row.input_ids)
    if not length:
        yield "expected at least one token, got none"
    if max_length is not None and length > max_length:
        yield f"expected at most {max_length} tokens (max_length), got {length}"
    if isinstance(row.labels, int) != classes:
        kinds = ("a class", "labels of tokens")
        yield f"expected {kinds[not classes]}, got {kinds[classes]}"
    elif isinstance(row.labels, int):
        if row.labels < 0:
            yield f"expected a class of at least 0, got {row.labels}"
    elif len(row.labels) != length:
        yield f"expected {length} labels, one per token, got {len(row.labels)}"
    elif not has_labels(row.labels):
        yield "expected a label past the first token, got none"


def _room(bare: object) -> tuple[int | None, int]:
    """Return the model's number of positions, and how many of them virtual tokens take."""
    if not isinstance(bare, Transformer):
        return None, 0
    return bare.config.max_position_embeddings, bare.num_virtual_tokens


def _too_long(row: Encoded, positions: int | None, virtual: int) -> Iterator[str]:
    length = len(row.input_ids)
    if positions is not None and virtual + length > positions:
        beside = f" beside {virtual} virtual ones" if virtual else ""
        yield f"expected at most {positions - virtual} tokens{beside}, got {length}"
