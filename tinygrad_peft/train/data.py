"""Training examples: read from a file, and turned into token ids and labels.

A classification file has `text` and `label`; a causal-LM file has `text`, or `prompt` and
`completion`. Other fields are ignored.
"""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, overload

import msgspec

from tinygrad_peft.errors import DataError, nearest
from tinygrad_peft.ops.loss import IGNORE_INDEX
from tinygrad_peft.train.rows import Fields, Problems, RowError, read_rows

IGNORED = IGNORE_INDEX  # the label of a token that the loss leaves out

Task: TypeAlias = Literal["causal-lm", "sequence-classification"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClassificationExample:
    """A text and the name of its class."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text of which every token is learned."""

    text: str


@dataclass(frozen=True, slots=True)
class CompletionExample:
    """A prompt, and the completion that is learned after it."""

    prompt: str
    completion: str


CausalExample: TypeAlias = TextExample | CompletionExample
Example: TypeAlias = ClassificationExample | CausalExample


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, with the class as one int or one label per token (IGNORED where not learned).

    Labels stand at the token that they name: comparing the logits of one position with the label
    of the next is the loss's work.
    """

    input_ids: tuple[int, ...]
    labels: int | tuple[int, ...]


class Encoder(Protocol):
    """What encoding needs of a tokenizer."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_length: int | None = None
    ) -> list[int]: ...


# ---------- reading ----------


def task_of_file(path: Path) -> Task:
    """What a data file is for, by its first row: with a label it is classification.

    Raises DataError for a file that cannot be read.
    """
    first = next(read_rows(path, Problems("")), None)
    labelled = first is not None and "label" in first[1]
    return "sequence-classification" if labelled else "causal-lm"


class _ClassificationRow(msgspec.Struct, frozen=True):
    text: str
    label: str | int | bool

    def example(self) -> ClassificationExample:
        return ClassificationExample(self.text, _label_text(self.label))


class _TextRow(msgspec.Struct, frozen=True):
    text: str

    def example(self) -> TextExample:
        return TextExample(self.text)


class _CompletionRow(msgspec.Struct, frozen=True):
    prompt: str
    completion: str

    def example(self) -> CompletionExample:
        return CompletionExample(self.prompt, self.completion)


_RowType: TypeAlias = type[_ClassificationRow] | type[_TextRow] | type[_CompletionRow]
_ROW_TYPES: dict[Task, tuple[_RowType, ...]] = {
    "causal-lm": (_TextRow, _CompletionRow),
    "sequence-classification": (_ClassificationRow,),
}


@overload
def read_examples(
    path: Path, task: Literal["sequence-classification"]
) -> list[ClassificationExample]: ...
@overload
def read_examples(path: Path, task: Literal["causal-lm"]) -> list[CausalExample]: ...
@overload
def read_examples(path: Path, task: Task) -> Sequence[Example]: ...
def read_examples(path: Path, task: Task) -> Sequence[Example]:
    """The examples of a .jsonl, .json-lines or .csv file, in its order.

    Labels become text as JSON spells them: 1 is "1", true is "true". Raises DataError for a file
    that cannot be read or is empty and, all at once, for every line that is no example of `task`.
    """
    problems = Problems(f"{path} cannot be used for {task}")
    examples: list[Example] = []
    first: tuple[int, _RowType] | None = None
    for line, fields in read_rows(path, problems):
        try:
            row_type = _row_type(fields, task)
            first = first or (line, row_type)
            _require_same_kind(row_type, first)
            examples.append(_example(fields, row_type))
        except RowError as error:
            problems.add(line, str(error))
    problems.raise_if_any()
    if not examples:
        raise DataError(f"{path} holds no examples: expected at least one")
    return examples


def _row_type(fields: Collection[str], task: Task) -> _RowType:
    candidates = _ROW_TYPES[task]
    complete = [kind for kind in candidates if set(_names(kind)) <= set(fields)]
    if len(complete) == 1:
        return complete[0]
    wanted = ", or ".join(map(_both, candidates))
    got = ", ".join(map(repr, fields)) or "no fields"
    raise RowError(f"expected {wanted}, got {got}")


def _require_same_kind(row_type: _RowType, first: tuple[int, _RowType]) -> None:
    line, expected = first
    if row_type is not expected:
        raise RowError(f"expected {_both(expected)} as in line {line}, got {_both(row_type)}")


def _example(fields: Fields, row_type: _RowType) -> Example:
    for name in _names(row_type):
        value = fields[name]
        if isinstance(value, str) and not value.strip():
            raise RowError(f"{name!r} is empty")
    try:
        return msgspec.convert(fields, row_type).example()
    except msgspec.ValidationError as error:
        raise RowError(str(error)) from None


def _label_text(label: str | int | bool) -> str:  # noqa: FBT001 - what JSON has
    return str(label).lower() if isinstance(label, bool) else str(label)


def _names(row_type: _RowType) -> tuple[str, ...]:
    return row_type.__struct_fields__


def _both(row_type: _RowType) -> str:
    return " and ".join(map(repr, _names(row_type)))


# ---------- encoding ----------


def label_names(examples: Sequence[ClassificationExample]) -> tuple[str, ...]:
    """The distinct labels, in numerical order where all are whole numbers, else by text."""
    names = {example.label for example in examples}
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def encode_classification(
    examples: Sequence[ClassificationExample],
    labels: Sequence[str],
    tokenizer: Encoder,
    max_length: int | None = None,
) -> list[Encoded]:
    """Token ids, and the place of each label in `labels`.

    Raises DataError for labels that `labels` does not have, and for texts without a token.
    """
    _require_known_labels(examples, labels)
    places = {name: place for place, name in enumerate(labels)}
    encoded = [
        Encoded(tuple(tokenizer.encode(example.text, max_length=max_length)), places[example.label])
        for example in examples
    ]
    for example, row in zip(examples, encoded, strict=True):
        if not row.input_ids:
            raise DataError(f"a text has no token: {example.text!r}")
    return encoded


def _require_known_labels(examples: Sequence[ClassificationExample], labels: Sequence[str]) -> None:
    counts = Counter(example.label for example in examples)
    unknown = [
        f"  {name!r} in {count} of {len(examples)} examples{nearest(name, labels, count=1)}"
        for name, count in sorted(counts.items())
        if name not in labels
    ]
    if unknown:
        known = ", ".join(map(repr, labels)) or "no label"
        raise DataError("\n".join([f"labels that training does not know ({known}):", *unknown]))


def encode_causal(
    examples: Sequence[CausalExample], tokenizer: Encoder, max_length: int | None = None
) -> list[Encoded]:
    """Token ids, and one label per token: every token of a text, the completion after a prompt.

    A completion ends with the tokenizer's end-of-sequence token, where it has one. What is longer
    than `max_length` loses the start of its prompt first, then the end of its completion; of a
    text, the end. Examples left with nothing to predict are dropped and their number is logged.
    Raises DataError where that would be all of them.
    """
    encoded = [_encode_one(example, tokenizer, max_length) for example in examples]
    kept = [row for row in encoded if _is_supervised(row)]
    _report_dropped(len(encoded) - len(kept), len(encoded), max_length)
    return kept


def encode_examples(
    examples: Sequence[Example], tokenizer: Encoder, max_length: int | None, labels: Sequence[str]
) -> list[Encoded]:
    """Examples of either kind, by `encode_classification` or by `encode_causal`."""
    classified = [e for e in examples if isinstance(e, ClassificationExample)]
    causal = [e for e in examples if not isinstance(e, ClassificationExample)]
    if classified:
        return encode_classification(classified, labels, tokenizer, max_length)
    return encode_causal(causal, tokenizer, max_length)


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
        # One prompt token stays, or the first completion token has nothing to be predicted from.
        prompt = _last(prompt, max(max_length - len(completion), 1), tokenizer.bos_id)
        completion = completion[: max(max_length - len(prompt), 0)]
    ids = (*prompt, *completion)
    return Encoded(ids, (IGNORED,) * len(prompt) + tuple(completion))


def prompt_ids(prompt: str, tokenizer: Encoder) -> list[int]:
    """The ids of a text that is to be gone on from, as training sees it: without an end."""
    ids = tokenizer.encode(prompt)
    # Some tokenizers close every text: a prompt is not finished.
    closed = len(ids) > 0 and ids[-1] == tokenizer.eos_id and tokenizer.eos_id != tokenizer.bos_id
    return ids[:-1] if closed else ids


def _last(ids: list[int], count: int, bos_id: int | None) -> list[int]:
    if len(ids) <= count:
        return ids
    if ids[0] == bos_id and count > 1:
        return [ids[0], *ids[len(ids) - count + 1 :]]
    return ids[-count:]


def _is_supervised(row: Encoded) -> bool:
    # The first token has no position before it that could predict it.
    return isinstance(row.labels, tuple) and any(label != IGNORED for label in row.labels[1:])


def _report_dropped(dropped: int, count: int, max_length: int | None) -> None:
    if not dropped:
        return
    limit = "" if max_length is None else f" within {max_length} tokens"
    message = f"{dropped} of {count} examples have nothing to predict{limit}"
    if dropped == count:
        raise DataError(message)
    logger.warning("%s and are left out", message)
