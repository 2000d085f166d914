"""Encoding examples."""

import logging

import pytest

from tinygrad_peft.errors import ConfigError, DataError
from tinygrad_peft.models import TokenizedText
from tinygrad_peft.train.encoding import Encoded, encode_causal, encode_classification, prompt_ids
from tinygrad_peft.train.examples import ClassificationExample, CompletionExample, TextExample
from tinygrad_peft.train.labels import IGNORED


class Letters:
    """One token per character, its code point; the given ids at the ends."""

    def __init__(self, bos_id: int | None = None, eos_id: int | None = 0) -> None:
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.end_ids = frozenset({0, ord("$")})
        self.closing: tuple[int, ...] = ()

    def tokenize(self, text: str) -> TokenizedText:
        start = [] if self.bos_id is None else [self.bos_id]
        ids = [*start, *map(ord, text), *self.closing]
        ends = [0 for _ in start] + list(range(1, len(text) + 1)) + [0 for _ in self.closing]
        return TokenizedText(ids, ends, len(start), len(self.closing))


class Closing(Letters):
    """Ends every text with the end-of-sequence token, as T5's tokenizer does."""

    def __init__(self, bos_id: int | None = None) -> None:
        super().__init__(bos_id)
        self.closing = (0,)


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
        "  - 'positiv' in 1 of 4 examples; did you mean 'positive'?",
        "  - 'q' in 2 of 4 examples",
    ]


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="the text '': expected at least one token, got none"):
        encode_classification([ClassificationExample("", "a")], ("a",), Letters())


def test_a_limit_without_room_for_the_special_tokens_is_refused() -> None:
    example, tokenizer = ClassificationExample("x", "a"), Closing(bos_id=1)
    [shortest] = encode_classification([example], ("a",), tokenizer, max_length=2)
    assert shortest.input_ids == (1, 0)
    with pytest.raises(ConfigError, match="max_length: expected at least 2, got 1"):
        encode_classification([example], ("a",), tokenizer, max_length=1)


def test_every_token_of_a_text_and_its_end_are_supervised() -> None:
    [encoded] = encode_causal([TextExample("ab")], Letters(bos_id=1), 4)
    assert encoded == Encoded((1, 97, 98, 0), (1, 97, 98, 0))


def test_a_text_that_was_cut_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    encoded = encode_causal(
        [TextExample("abc"), TextExample("a")], Letters(bos_id=1), 3, where="x: "
    )
    assert list(encoded) == [Encoded((1, 97, 98), (1, 97, 98)), Encoded((1, 97, 0), (1, 97, 0))]
    assert encoded.truncated == 1
    assert caplog.messages == ["x: 1 of 2 examples were cut to 3 tokens"]


@pytest.mark.parametrize(
    ("text", "tokenizer", "ids"),
    [
        ("a\0", Letters(), (97, 0)),
        ("a$", Letters(), (97, 36)),  # another token that ends texts
        ("a", Closing(), (97, 0)),
        ("a\0", Closing(), (97, 0)),
        ("a", Letters(eos_id=None), (97,)),
    ],
)
def test_a_text_gets_one_end(text: str, tokenizer: Letters, ids: tuple[int, ...]) -> None:
    [encoded] = encode_causal([TextExample("z" + text)], tokenizer)
    assert encoded.input_ids == (122, *ids)
    [completed] = encode_causal([CompletionExample("zz", text)], tokenizer)
    assert completed.input_ids == (122, 122, *ids)


def test_a_text_that_brings_its_first_token_has_it_once() -> None:
    tokenizer = Letters(bos_id=1)
    [encoded] = encode_causal([TextExample("\1ab")], tokenizer)
    assert encoded.input_ids == (1, 97, 98, 0)
    [completed] = encode_causal([CompletionExample("\1a", "b")], tokenizer)
    assert completed == Encoded((1, 97, 98, 0), (IGNORED, IGNORED, 98, 0))
    assert prompt_ids("\1ab", tokenizer) == prompt_ids("ab", tokenizer) == [1, 97, 98]
    [classified] = encode_classification([ClassificationExample("\1a", "x")], ["x"], tokenizer)
    assert classified.input_ids == (1, 97)


def test_an_empty_prompt_leaves_the_whole_completion_to_learn() -> None:
    [encoded] = encode_causal([CompletionExample("", "ab")], Letters(bos_id=1))
    assert encoded == Encoded((1, 97, 98, 0), (IGNORED, 97, 98, 0))
    [bare] = encode_causal([CompletionExample("", "ab")], Letters())
    assert bare == Encoded((97, 98, 0), (97, 98, 0))


def test_a_prompt_is_open_where_the_tokenizer_closes_texts() -> None:
    assert prompt_ids("ab", Closing(bos_id=1)) == [1, 97, 98]


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
        encoded = encode_causal(examples, Letters(eos_id=None), 64)
    assert [row.input_ids for row in encoded] == [(97, 98, 99)]
    assert encoded.left_out == 2
    assert caplog.messages == [
        "2 of 3 examples have nothing to predict within 64 tokens and are left out"
    ]


def test_nothing_to_predict_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="1 of 1 examples have nothing to predict within 1 tokens"):
        encode_causal([CompletionExample("a", "b")], Letters(), 1)
