"""fetch, and names in the place of paths."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import TypeAlias

import pytest

from tests.cli.toys import Commands, fake_fetched
from tests.models.fetch.fake_hub import Repository, running
from tests.peft.small import LLAMA, small
from tinygrad_peft.errors import CheckpointError, FetchError
from tinygrad_peft.models import load_config, load_model
from tinygrad_peft.peft import get_peft_model
from tinygrad_peft_lora import LoraConfig

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("option", ["--model", "--data"])
def test_name_that_was_not_fetched_is_refused_with_the_command_to_run(
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
    folder = fake_fetched(cache, "movie-reviews")
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
        (
            "--model",
            "nowhere",
            "nowhere: no such model (on the hub a name has its organisation: organisation/nowhere)",
        ),
        ("--model", "no/where/at/all/", "no/where/at/all/: no such model"),
        (
            "--train",
            "movie-review",
            "movie-review: no such data file; did you mean 'movie-reviews'",
        ),
    ],
)
def test_text_that_is_neither_a_path_nor_a_name_is_refused(
    small_world: Path, cache: Path, commands: Commands, option: str, name: str, told: str
) -> None:
    message = commands.fails(
        *("finetune", "--model", small_world / "bert", "--train", small_world / "reviews.jsonl"),
        *("--task", "sequence-classification", "--method", "lora", "--out", cache / "out"),
        *(option, name),
    )
    assert message.startswith(f"tinygrad-peft: {told}")
    assert not (cache / "out").exists()


# ---------- names on the hub ----------


Folders: TypeAlias = dict[tuple[str, str | None, str], Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Folders that the hub gives for a name, a revision and a kind: in this process it cannot."""
    folders: Folders = {}

    def download(
        name: str, *, revision: str | None = None, kind: str = "model", folder: str = ""
    ) -> Path:
        name = f"{name}/{folder}" if folder else name
        if (name, revision, kind) not in folders:
            if any(known == name for known, _, _ in folders):
                raise CheckpointError(f"{name} has no config.json: it is an adapter, not a model")
            raise FetchError(f"{name}: the hub has no such repository")
        return folders[name, revision, kind]

    monkeypatch.setattr("tinygrad_peft.cli.sources.download_from_hub", download)
    monkeypatch.chdir(tmp_path)
    return folders


def test_models_and_adapters_are_named_as_on_the_hub(
    small_world: Path,
    tmp_path: Path,
    hub: Folders,
    commands: Commands,
) -> None:
    hub["org/model", None, "model"] = small_world / "llama"
    hub["org/model", "v1", "model"] = small_world / "llama"
    get_peft_model(small(LLAMA), LoraConfig(r=2)).save_pretrained(tmp_path / "saved")
    hub["org/adapter", "main", "adapter"] = tmp_path / "saved"
    arguments = ("generate", "--prompt", "the", "--max-new-tokens", "2")
    plain = commands.ok(*arguments, "--model", small_world / "llama").out
    assert commands.ok(*arguments, "--model", "org/model").out == plain
    assert commands.ok(*arguments, "--model", "org/model@v1").out == plain
    commands.ok(*arguments, "--model", "org/model", "--adapter", "org/adapter@main")


def test_an_adapter_may_be_in_a_folder_of_a_repository(
    small_world: Path, tmp_path: Path, hub: Folders, commands: Commands
) -> None:
    get_peft_model(small(LLAMA), LoraConfig(r=2)).save_pretrained(tmp_path / "saved")
    hub["org/adapter/runs/1", "main", "adapter"] = tmp_path / "saved"
    arguments = ("generate", "--prompt", "the", "--max-new-tokens", "2", "--model")
    commands.ok(*arguments, small_world / "llama", "--adapter", "org/adapter/runs/1@main")
    (tmp_path / "runs").mkdir()
    told = commands.fails(*arguments, small_world / "llama", "--adapter", "runs/lora/checkpoint-5")
    assert told == "tinygrad-peft: runs/lora/checkpoint-5: no such folder\n"


def test_an_adapter_in_the_place_of_a_model_is_named(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    base = load_model(small_world / "llama")
    get_peft_model(base, LoraConfig(r=2)).save_pretrained(tmp_path / "saved")
    wanted = (
        f"{tmp_path / 'saved'} is an adapter's folder, not a model's: expected its base as the "
        f"model, '{small_world / 'llama'}' by its settings, and this folder as the adapter"
    )
    for command in (
        ("generate", "--prompt", "the"),
        ("merge", "--adapter", tmp_path / "saved", "--out", tmp_path / "out"),
        ("evaluate", "--data", small_world / "reviews.jsonl"),
    ):
        told = commands.fails(*command, "--model", tmp_path / "saved")
        assert told == f"tinygrad-peft: {wanted}\n"
    for load in (load_model, load_config):
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / "saved")
        assert str(caught.value) == wanted


def test_a_path_comes_before_a_name_on_the_hub(
    small_world: Path,
    tmp_path: Path,
    hub: Folders,
    commands: Commands,
) -> None:
    assert hub == {}
    copytree(small_world / "llama", tmp_path / "org" / "model")
    commands.ok("inspect", "org/model")


def test_name_that_is_neither_a_path_nor_on_the_hub_is_refused(
    small_world: Path, hub: Folders, commands: Commands
) -> None:
    assert hub == {}
    arguments = ("generate", "--prompt", "the", "--model")
    assert commands.fails(*arguments, "org/none") == (
        "tinygrad-peft: no such model here, nor from the hub: org/none: the hub has no such "
        "repository\n"
    )
    told = commands.fails(*arguments, small_world / "llama", "--adapter", "org/none")
    assert "no such adapter here, nor from the hub: org/none" in told
    assert "no-name: no such folder" in commands.fails(
        *arguments, small_world / "llama", "--adapter", "no-name"
    )


def test_inspect_takes_either(
    small_world: Path, tmp_path: Path, hub: Folders, commands: Commands
) -> None:
    hub["org/model", None, "model"] = small_world / "llama"
    assert commands.ok("inspect", "org/model", "--json").json["kind"] == "model"
    get_peft_model(small(LLAMA), LoraConfig(r=2)).save_pretrained(tmp_path / "saved")
    hub["org/adapter", None, "adapter"] = tmp_path / "saved"
    assert commands.ok("inspect", "org/adapter", "--json").json["kind"] == "adapter"


@pytest.mark.slow
def test_a_model_and_its_adapter_come_from_the_hub(small_world: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the hub extra")
    get_peft_model(small(LLAMA), LoraConfig(r=2)).save_pretrained(tmp_path / "saved")
    with running(tmp_path / "home") as fake:
        for name, folder in (("model", small_world / "llama"), ("adapter", tmp_path / "saved")):
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            fake.repositories[f"org/{name}"] = Repository(files)
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "tinygrad_peft", "generate", "--json", "--prompt", "the"),
                *("--model", "org/model", "--adapter", "org/adapter@main", "--max-new-tokens", "2"),
            ],
            env=fake.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["new_tokens"] == 2
