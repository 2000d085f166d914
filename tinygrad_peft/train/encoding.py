"""Examples as token ids and labels."""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

from tinygrad_peft.errors import DataError, shortened
from tinygrad_peft.models import TokenizedText
from tinygrad_peft.train.examples import (
    CausalExample,
    ClassificationExample,
    Example,
    TextExample,
)
from tinygrad_peft.train.label_matching import class_numbers, log_readings
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
    pad_id: int = 0  # any of the model's ids: padding is masked
    truncated: int = 0  # the number of examples that `max_length` has shortened
    left_out: int = 0  # the number of examples that had nothing to predict

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
    def eos_id(self) -> int | None: ...

    @property
    def end_ids(self) -> Collection[int]: ...

    def tokenize(self, text: str) -> TokenizedText: ...


def encode_examples(
    examples: Sequence[Example],
    tokenizer: Encoder,
    max_length: int | None,
    labels: Sequence[str],
    *,
    where: str = "",
) -> EncodedData:
    """Encode examples of either kind, by `encode_classification` or by `encode_causal`."""
    classified = [e for e in examples if isinstance(e, ClassificationExample)]
    causal = [e for e in examples if not isinstance(e, ClassificationExample)]
    if classified:
        return encode_classification(classified, labels, tokenizer, max_length, where=where)
    return encode_causal(causal, tokenizer, max_length, where=where)


def _report_cut(cut: int, count: int, max_length: int | None, where: str) -> None:
    if cut:
        logger.warning("%s%d of %d examples were cut to %d tokens", where, cut, count, max_length)


# ---------- texts to classify ----------


def encode_classification(
    examples: Sequence[ClassificationExample],
    labels: Sequence[str],
    tokenizer: Encoder,
    max_length: int | None = None,
    *,
    where: str = "",
) -> EncodedData:
    """Encode each text with the index of its label in `labels`, as `class_numbers` finds it.

    A longer text than `max_length` tokens is cut before its last special token. The number of cut
    texts, and labels that are read otherwise than by name, are logged after `where`.

    Raises DataError for labels that do not fit `labels`, and for texts without tokens.
    """
    index = class_numbers([example.label for example in examples], labels)
    log_readings(index, labels, where)
    texts = [tokenizer.tokenize(example.text).undoubled() for example in examples]
    for example, text in zip(examples, texts, strict=True):
        if not text.ids:
            shown = shortened(repr(example.text))
            raise DataError(f"the text {shown}: expected at least one token, got none")
    cut = sum(max_length is not None and len(text.ids) > max_length for text in texts)
    _report_cut(cut, len(texts), max_length, where)
    rows = [
        Encoded(text.shortened(max_length), index[example.label])
        for example, text in zip(examples, texts, strict=True)
    ]
    return EncodedData(tuple(rows), truncated=cut)


# ---------- texts to continue ----------


def encode_causal(
    examples: Sequence[CausalExample],
    tokenizer: Encoder,
    max_length: int | None = None,
    *,
    where: str = "",
) -> EncodedData:
    """Encode texts with every token labelled, and completions with their own tokens labelled.

    A prompt and its completion are one text, so that their tokens are those of the text. A token
    that spans the boundary belongs to the completion. Texts and completions end with the
    tokenizer's end-of-sequence token, if it has one and they do not end already.

    An example longer than `max_length` loses the start of its prompt first, then the end of its
    completion; a text loses its end. What has lost its end has no end-of-sequence token. Examples
    with nothing left to predict are dropped. The numbers of cut and dropped examples are logged
    after `where`. Raises DataError if that drops all of them.
    """
    encoded = [_encode_one(example, tokenizer) for example in examples]
    rows = [example.within(max_length) for example in encoded]
    kept = [row for row in rows if isinstance(row.labels, tuple) and has_labels(row.labels)]
    cut = sum(example.is_longer_than(max_length) for example in encoded)
    _report_cut(cut, len(encoded), max_length, where)
    _report_other_prompts(sum(example.is_other for example in encoded), len(encoded), where)
    _report_dropped(len(rows) - len(kept), len(rows), max_length, where)
    return EncodedData(tuple(kept), truncated=cut, left_out=len(rows) - len(kept))


@dataclass(frozen=True)
class _Continuation:
    """The tokens of a prompt, and those that are learned after it, the end included.

    special: the number of special tokens at the start, which outlive the rest of the prompt.
    is_other: the prompt alone has other tokens than at the start of the text.
    """

    prompt: tuple[int, ...]
    learned: tuple[int, ...]
    special: int
    is_other: bool

    def is_longer_than(self, max_length: int | None) -> bool:
        return max_length is not None and len(self.prompt) + len(self.learned) > max_length

    def within(self, max_length: int | None) -> Encoded:
        """Return the example cut to `max_length` tokens."""
        prompt, learned = self.prompt, self.learned
        if max_length is not None and self.is_longer_than(max_length):
            # One prompt token stays, or nothing would predict the first token after it.
            prompt = _last(prompt, max(max_length - len(learned), 1), self.special)
            learned = learned[: max(max_length - len(prompt), 0)]
        return Encoded((*prompt, *learned), completion_labels(prompt, learned))


def _encode_one(example: CausalExample, tokenizer: Encoder) -> _Continuation:
    if isinstance(example, TextExample):
        text = tokenizer.tokenize(example.text).undoubled()
        return _Continuation((), _ended(text.ids, tokenizer), 0, is_other=False)
    # As one text: apart, many tokenizers would put a space before the completion.
    text = tokenizer.tokenize(example.prompt + example.completion).undoubled()
    start = text.first_after(len(example.prompt))
    prompt, learned = tuple(text.ids[:start]), _ended(text.ids[start:], tokenizer)
    is_other = prompt != tuple(prompt_ids(example.prompt, tokenizer))
    return _Continuation(prompt, learned, text.before, is_other=is_other)


def _ended(ids: Sequence[int], tokenizer: Encoder) -> tuple[int, ...]:
    """Add the end-of-sequence token, unless a token that ends texts is there."""
    end = tokenizer.eos_id
    if end is None or (ids and ids[-1] in tokenizer.end_ids):
        return tuple(ids)
    return *ids, end


def prompt_ids(prompt: str, tokenizer: Encoder) -> list[int]:
    """Encode a text to continue, as training sees it: without what would close it."""
    return list(tokenizer.tokenize(prompt).opened().undoubled().ids)


def _last(ids: tuple[int, ...], count: int, special: int) -> tuple[int, ...]:
    """Keep the special tokens at the start, if there is room, and the last of the others."""
    kept = special if count > special else 0
    return ids if len(ids) <= count else ids[:kept] + ids[len(ids) - count + kept :]


def _report_other_prompts(other: int, count: int, where: str) -> None:
    if other:
        logger.warning(
            "%s%d of %d prompts have other tokens without their completions, and so in generation "
            "(a prompt should not end in a space or within a word)",
            *(where, other, count),
        )


def _report_dropped(dropped: int, count: int, max_length: int | None, where: str) -> None:
    if not dropped:
        return
    limit = "" if max_length is None else f" within {max_length} tokens"
    message = f"{dropped} of {count} examples have nothing to predict{limit}"
    if dropped == count:
        raise DataError(message)
    logger.warning("%s%s and are left out", where, message)
