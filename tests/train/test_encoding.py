"""Encoding examples."""

import logging

import pytest

from tinygrad_peft.errors import DataError
from tinygrad_peft.train.encoding import Encoded, encode_causal, encode_classification
from tinygrad_peft.train.examples import ClassificationExample, CompletionExample, TextExample
from tinygrad_peft.train.labels import IGNORED


class Letters:
    """One token per character, its code point; the given ids at the ends."""

    def __init__(
        self, bos_id: int | None = None, eos_id: int | None = 0, pad_id: int | None = None
    ) -> None:
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = pad_id

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_length: int | None = None
    ) -> list[int]:
        start = [self.bos_id] if add_special_tokens and self.bos_id is not None else []
        return [*start, *map(ord, text)][:max_length]


class Closing(Letters):
    """Ends every text with the end-of-sequence token, as T5's tokenizer does."""

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_length: int | None = None
    ) -> list[int]:
        return super().encode(text)[:max_length] + ([0] if add_special_tokens else [])


def test_classification_labels_become_their_places() -> None:
    examples = [ClassificationExample("ab", "yes"), ClassificationExample("c", "no")]
    encoded = encode_classification(examples, ("no", "yes"), Letters(), max_length=1)
    assert list(encoded) == [Encoded((97,), 1), Encoded((99,), 0)]


def test_all_unknown_labels_are_listed() -> None:
    examples = [ClassificationExample("x", label) for label in ("positiv", "positive", "q", "q")]
    with pytest.raises(DataError) as caught:
        encode_classification(examples, ("negative", "positive"), Letters())
    assert str(caught.value).splitlines() == [
        "unknown labels (expected one of 'negative', 'positive'):",
        "  'positiv' in 1 of 4 examples; did you mean 'positive'?",
        "  'q' in 2 of 4 examples",
    ]


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="the text 'x': expected at least one token, got none"):
        encode_classification([ClassificationExample("x", "a")], ("a",), Letters(), max_length=0)


def test_every_token_of_a_text_is_supervised() -> None:
    encoded = encode_causal([TextExample("abc")], Letters(bos_id=1), 3)
    assert list(encoded) == [Encoded((1, 97, 98), (1, 97, 98))]


def test_only_the_completion_and_its_end_are_supervised() -> None:
    encoded = encode_causal([CompletionExample("ab", "cd")], Letters(bos_id=1))
    assert list(encoded) == [
        Encoded((1, 97, 98, 99, 100, 0), (IGNORED, IGNORED, IGNORED, 99, 100, 0))
    ]


def test_a_tokenizer_without_an_end_token_adds_none() -> None:
    encoded = encode_causal([CompletionExample("a", "b")], Letters(eos_id=None))
    assert list(encoded) == [Encoded((97, 98), (IGNORED, 98))]


def test_a_prompt_is_not_closed_before_its_completion() -> None:
    encoded = encode_causal([CompletionExample("a", "b")], Closing())
    assert list(encoded) == [Encoded((97, 98, 0), (IGNORED, 98, 0))]


@pytest.mark.parametrize(
    ("max_length", "ids", "prompt_length"),
    [
        (8, [1, *b"abcd", *b"ef", 0], 5),
        (6, [1, *b"cd", *b"ef", 0], 3),  # the prompt loses its start, not its first special token
        (4, [*b"d", *b"ef", 0], 1),
        (3, [*b"d", *b"ef"], 1),  # a completion that was cut does not end
        (2, [*b"d", *b"e"], 1),
    ],
)
def test_truncation_spares_the_completion(
    max_length: int, ids: list[int], prompt_length: int
) -> None:
    example = CompletionExample("abcd", "ef")
    [encoded] = encode_causal([example], Letters(bos_id=1), max_length)
    labels = (IGNORED,) * prompt_length + tuple(ids[prompt_length:])
    assert encoded == Encoded(tuple(ids), labels)


def test_examples_with_nothing_to_predict_are_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    examples = [TextExample("abc"), TextExample("a"), TextExample("b")]
    with caplog.at_level(logging.WARNING):
        encoded = encode_causal(examples, Letters(), 64)
    assert [row.input_ids for row in encoded] == [(97, 98, 99)]
    assert caplog.messages == [
        "2 of 3 examples have nothing to predict within 64 tokens and are left out"
    ]


def test_nothing_to_predict_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="1 of 1 examples have nothing to predict within 1 tokens"):
        encode_causal([CompletionExample("a", "b")], Letters(), 1)
