"""Parsing the two data sets."""

import hashlib
import json

from tinygrad_peft.models.fetch.data_sets import devils_dictionary, movie_reviews, split

TITLE = "The Devil's Dictionary\n\n"

REVIEWS = (
    "1\t2.26\tA splash.\r\n"
    "2\t-0.5\tCafé of clichés.\r\n"
    "3\t0.4\tIt is a film.\r\n"
    "4\t0.5\tGood.\r\n"
    "5\t-3\tGood."
)

DICTIONARY = """\
00-database-info
_The Devil's Dictionary_ was begun in a weekly paper in 1881, and was
continued in a desultory way.
No restrictions are claimed, etc.  Please redistribute.

ABDICATION, n.  An act whereby a sovereign attests his sense of the
high temperature of the throne.

    Poor Isabella's Dead, whose abdication, n.  Set all tongues wagging
                                                                  G.J.

ABRACADABRA.

    By _Abracadabra_ we signify

ACADEMY, n.  [from {ACADEME}]  A modern school where football is
taught.

ALLEGIANCE, n.

    This thing Allegiance, as I suppose,

CONFIDANT, CONFIDANTE, n.  One entrusted by A.

I is the first letter of the alphabet, the first word of the language.

IMPOSTOR n.  A rival aspirant to public honors.

TZETZE (or TSETSE) FLY, n.  An African insect.

BABE or BABY, n.  A misshapen creature.

KING'S EVIL, n.  A malady.

KEEP, v.t.  To hold, thus:

PRISON, n.  A place.  The poet assures us that --

TEDIUM, n.  %s
"""


def test_reviews_without_a_clear_opinion_and_repeated_texts_are_left_out() -> None:
    rows = movie_reviews(REVIEWS.encode())
    assert {row["text"]: row["label"] for row in rows} == {
        "A splash.": "positive",
        "Café of clichés.": "negative",
        "Good.": "positive",
    }
    assert len(rows) == 3


def test_reviews_are_ordered_by_md5() -> None:
    texts = [row["text"].encode() for row in movie_reviews(REVIEWS.encode())]
    digests = [hashlib.md5(text, usedforsecurity=False).digest() for text in texts]
    assert digests == sorted(digests)


def test_every_prompt_of_the_dictionary_begins_with_its_title() -> None:
    rows = devils_dictionary((DICTIONARY % "Boredom.").encode())
    assert rows
    assert all(row["prompt"].startswith(TITLE) for row in rows)


def test_dictionary_entries_become_prompts_and_completions() -> None:
    rows = devils_dictionary((DICTIONARY % "Boredom.").encode())
    assert {row["prompt"].removeprefix(TITLE): row["completion"] for row in rows} == {
        "ABDICATION, n.": " An act whereby a sovereign attests his sense of the high temperature "
        "of the throne.",
        "ACADEMY, n.": " [from ACADEME] A modern school where football is taught.",
        "CONFIDANT, CONFIDANTE, n.": " One entrusted by A.",
        "IMPOSTOR, n.": " A rival aspirant to public honors.",
        "TZETZE (or TSETSE) FLY, n.": " An African insect.",
        "BABE or BABY, n.": " A misshapen creature.",
        "KING'S EVIL, n.": " A malady.",
        "TEDIUM, n.": " Boredom.",
    }


def test_long_entries_are_left_out() -> None:
    def has_tedium(length: int) -> bool:
        definition = "x" * (length - len("TEDIUM, n. "))
        rows = devils_dictionary((DICTIONARY % definition).encode())
        return any(row["prompt"] == TITLE + "TEDIUM, n." for row in rows)

    assert has_tedium(319)
    assert not has_tedium(320)


def test_a_split_takes_the_first_rows_the_last_rows_and_all() -> None:
    rows = [{"text": letter} for letter in "abcdé"]
    files = split(rows, train=2, test=1)
    read = {
        name: [json.loads(line)["text"] for line in content.decode().splitlines()]
        for name, content in files.items()
    }
    assert read == {
        "train.jsonl": ["a", "b"],
        "test.jsonl": ["é"],
        "all.jsonl": ["a", "b", "c", "d", "é"],
    }
