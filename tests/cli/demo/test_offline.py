"""The made-up language of the demo without a network."""

import pytest

pytest.importorskip("tokenizers", reason="needs the text extra")

from tinygrad_peft.cli.demo.offline import (
    NEGATED,
    plain_statements,
    reviews,
    word_tokenizer,
)


def test_each_word_of_the_language_has_its_own_token() -> None:
    tokenizer = word_tokenizer()
    for example in (*reviews(200, seed=0), *plain_statements(200, seed=0)):
        ids = tokenizer.encode(example.text)
        assert tokenizer.decode(ids) == example.text
        assert len(ids) == len(example.text.split()) + 2


def test_not_turns_an_opinion_round_in_reviews_and_means_nothing_in_statements() -> None:
    negated = [e for e in reviews(1000, seed=0) if "was not " in e.text.replace("it was not", "")]
    assert abs(len(negated) / 1000 - NEGATED) < 0.05
    assert {e.label for e in negated if "good" in e.text} == {"negative"}
    assert {e.label for e in negated if "awful" in e.text} == {"positive"}
    statements = [e for e in plain_statements(1000, seed=0) if " not " in e.text]
    assert {e.label.split()[1] for e in statements if "good" in e.text} == {"positive"}


def test_the_same_seed_gives_the_same_language() -> None:
    assert reviews(5, seed=3) == reviews(5, seed=3) != reviews(5, seed=4)
