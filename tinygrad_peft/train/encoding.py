"""Examples as token ids and labels."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

from tinygrad_peft.errors import DataError, nearest
from tinygrad_peft.train.examples import (
    CausalExample,
    ClassificationExample,
    Example,
    TextExample,
)
from tinygrad_peft.train.labels import Labels, completion_labels, has_labels

__all__ = [
    "Encoded",
    "EncodedData",
    "Encoder",
    "encode_causal",
    "encode_classification",
    "encode_examples",
    "prompt_ids",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a text with its labels: one class, or one label per token (`train.labels`)."""

    input_ids: tuple[int, ...]
    labels: Labels


@dataclass(frozen=True, slots=True)
class EncodedData(Sequence[Encoded]):
    """A data set: encoded examples, and the token id that pads them in a batch.

    >>> data = EncodedData([Encoded((5, 6), 0), Encoded((7,), 1)], pad_id=3)
    >>> len(data), data[1]
    (2, Encoded(input_ids=(7,), labels=1))
    """

    examples: Sequence[Encoded]
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Encoded]:
        return iter(self.examples)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "EncodedData": ...
    def __getitem__(self, index: int | slice) -> "Encoded | EncodedData":
        if isinstance(index, slice):
            return EncodedData(self.examples[index], self.pad_id)
        return self.examples[index]


class Encoder(Protocol):
    """The part of a tokenizer that encoding uses."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int | None: ...

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_length: int | None = None
    ) -> list[int]: ...


def encode_examples(
    examples: Sequence[Example], tokenizer: Encoder, max_length: int | None, labels: Sequence[str]
) -> EncodedData:
    """Encode examples of either kind, by `encode_classification` or by `encode_causal`."""
    classified = [e for e in examples if isinstance(e, ClassificationExample)]
    causal = [e for e in examples if not isinstance(e, ClassificationExample)]
    if classified:
        return encode_classification(classified, labels, tokenizer, max_length)
    return encode_causal(causal, tokenizer, max_length)


def _data(rows: Sequence[Encoded], tokenizer: Encoder) -> EncodedData:
    # Padding is masked: without a token of its own, any id does.
    return EncodedData(tuple(rows), tokenizer.pad_id or 0)


# ---------- texts to classify ----------


def encode_classification(
    examples: Sequence[ClassificationExample],
    labels: Sequence[str],
    tokenizer: Encoder,
    max_length: int | None = None,
) -> EncodedData:
    """Encode each text with the index of its label in `labels`.

    Raises DataError for labels that are not in `labels`, and for texts without tokens.
    """
    _require_known_labels(examples, labels)
    index = {name: place for place, name in enumerate(labels)}
    rows = [
        Encoded(tuple(tokenizer.encode(example.text, max_length=max_length)), index[example.label])
        for example in examples
    ]
    for example, row in zip(examples, rows, strict=True):
        if not row.input_ids:
            raise DataError(f"the text {example.text!r}: expected at least one token, got none")
    return _data(rows, tokenizer)


def _require_known_labels(examples: Sequence[ClassificationExample], labels: Sequence[str]) -> None:
    counts = Counter(example.label for example in examples)
    unknown = [
        f"  {name!r} in {count} of {len(examples)} examples{nearest(name, labels, count=1)}"
        for name, count in sorted(counts.items())
        if name not in labels
    ]
    if unknown:
        known = ", ".join(map(repr, labels)) or "no label"
        raise DataError("\n".join([f"unknown labels (expected one of {known}):", *unknown]))


# ---------- texts to continue ----------


def encode_causal(
    examples: Sequence[CausalExample], tokenizer: Encoder, max_length: int | None = None
) -> EncodedData:
    """Encode texts with every token labelled, and completions with their own tokens labelled.

    A completion ends with the tokenizer's end-of-sequence token, if it has one. An example longer
    than `max_length` loses the start of its prompt first, then the end of its completion; a text
    loses its end. Examples with nothing left to predict are dropped, and their number is logged.
    Raises DataError if that drops all of them.
    """
    encoded = [_encode_one(example, tokenizer, max_length) for example in examples]
    kept = [row for row in encoded if isinstance(row.labels, tuple) and has_labels(row.labels)]
    _report_dropped(len(encoded) - len(kept), len(encoded), max_length)
    return _data(kept, tokenizer)


def _encode_one(example: CausalExample, tokenizer: Encoder, max_length: int | None) -> Encoded:
    if isinstance(example, TextExample):
        ids = tuple(tokenizer.encode(example.text, max_length=max_length))
        return Encoded(ids, ids)
    # Apart, so that no token spans the boundary and generation sees the prompt that was trained.
    prompt = prompt_ids(example.prompt, tokenizer)
    completion = tokenizer.encode(example.completion, add_special_tokens=False)
    if tokenizer.eos_id is not None:
        completion.append(tokenizer.eos_id)
    if max_length is not None:
        # One prompt token stays, or nothing would predict the first token of the completion.
        prompt = _last(prompt, max(max_length - len(completion), 1), tokenizer.bos_id)
        completion = completion[: max(max_length - len(prompt), 0)]
    return Encoded((*prompt, *completion), completion_labels(prompt, completion))


def prompt_ids(prompt: str, tokenizer: Encoder) -> list[int]:
    """Encode a text to continue, as training sees it: without an end-of-sequence token."""
    ids = tokenizer.encode(prompt)
    # Some tokenizers close every text, and a prompt goes on.
    closed = len(ids) > 0 and ids[-1] == tokenizer.eos_id and tokenizer.eos_id != tokenizer.bos_id
    return ids[:-1] if closed else ids


def _last(ids: list[int], count: int, bos_id: int | None) -> list[int]:
    if len(ids) <= count:
        return ids
    if ids[0] == bos_id and count > 1:
        return [ids[0], *ids[len(ids) - count + 1 :]]
    return ids[-count:]


def _report_dropped(dropped: int, count: int, max_length: int | None) -> None:
    if not dropped:
        return
    limit = "" if max_length is None else f" within {max_length} tokens"
    message = f"{dropped} of {count} examples have nothing to predict{limit}"
    if dropped == count:
        raise DataError(message)
    logger.warning("%s and are left out", message)
