"""Repositories of the hub, against a fake of its HTTP interface."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.models.fetch.fake_hub import FakeHub, Repository, running
from tinygrad_peft.errors import MissingExtraError
from tinygrad_peft.models.fetch import name_and_revision
from tinygrad_peft.models.fetch.hub import download_from_hub, is_hub_name

WEIGHTS = save({"a": np.arange(50_000, dtype=np.float32)})
MODEL = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "generation_config.json": b"{}",
    "vocab.txt": b"words",
    "LICENSE": b"MIT",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another format",
    "README.md": b"words",
}
STEP = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
ADAPTER = {**STEP, "adapter_model.bin": b"a pickle", "checkpoint-500/adapter_config.json": b"{}"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    pytest.importorskip("huggingface_hub", reason="needs the hub extra")
    with running(tmp_path / "home") as fake:
        fake.repositories["org/model"] = Repository(MODEL)
        fake.repositories["org/adapter"] = Repository(ADAPTER)
        yield fake


def names(folder: Path | None) -> list[str]:
    assert folder is not None
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_only_a_models_files_are_downloaded(hub: FakeHub) -> None:
    folder = hub.download("org/model").path
    left = ("pytorch_model.bin", "onnx/model.onnx", "README.md")
    assert names(folder) == sorted(name for name in MODEL if name not in left)
    assert folder is not None
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert folder.is_relative_to(hub.folder)
    assert not any(".bin" in request for request in hub.requests)


def test_only_an_adapters_files_are_downloaded(hub: FakeHub) -> None:
    assert names(hub.download("org/adapter", kind="adapter").path) == sorted(STEP)


def test_the_steps_of_a_recipe_are_downloaded(hub: FakeHub) -> None:
    files = {
        f"{folder}/{name}": data for folder in ("0-lora", "10-lora") for name, data in STEP.items()
    }
    hub.repositories["org/stack"] = Repository({"recipe.json": b"{}", **files})
    found = hub.download("org/stack", kind="adapter").path
    assert names(found) == sorted(["recipe.json", *files])


def test_a_folder_in_a_repository_is_downloaded_alone(hub: FakeHub) -> None:
    files = {f"runs/{n}/{name}": data for n in (1, 2) for name, data in STEP.items()}
    hub.repositories["org/runs"] = Repository(files | {"runs/1/tokenizer.json": b"{}"})
    found = hub.download("org/runs", kind="adapter", folder="runs/1").path
    assert names(found) == sorted([*STEP, "tokenizer.json"])
    assert found is not None
    assert name_and_revision(found) == ("org/runs/runs/1", "a" * 40)
    told = hub.download("org/runs", kind="adapter")
    assert told.message == (
        "org/runs has no recipe.json or adapter_config.json; name a folder in it: "
        "org/runs/runs/1, org/runs/runs/2"
    )
    told = hub.download("org/runs", kind="adapter", folder="runs/3")
    assert told.message.startswith("org/runs/runs/3 has no recipe.json or adapter_config.json; na")


def test_cached_files_are_not_downloaded_again(hub: FakeHub) -> None:
    first = hub.download("org/model").path
    hub.requests.clear()
    assert hub.download("org/model").path == first
    assert not any(request.startswith("GET /org/model/resolve") for request in hub.requests)


def test_a_revision_may_be_a_branch_a_tag_or_a_commit(hub: FakeHub) -> None:
    commits = {"main": "a" * 40, "v1.0": "b" * 40}
    hub.repositories["org/model"] = Repository(MODEL, commits)
    tagged = hub.download("org/model", revision="v1.0").path
    assert tagged is not None
    assert name_and_revision(tagged) == ("org/model", "b" * 40)
    assert tagged.name == "b" * 40
    assert hub.download("org/model", revision="b" * 40).path == tagged


def test_an_interrupted_download_resumes(hub: FakeHub) -> None:
    large = save({"a": np.arange(6_000_000, dtype=np.float32)})  # more than two of its chunks
    hub.repositories["org/large"] = Repository({**MODEL, "model.safetensors": large})
    hub.cuts = 1
    folder = hub.download("org/large").path
    assert folder is not None
    assert (folder / "model.safetensors").read_bytes() == large
    [asked] = hub.ranges
    assert 0 < int(asked.removeprefix("bytes=").removesuffix("-")) <= len(large) // 2


def test_without_a_network_the_cache_is_enough(hub: FakeHub) -> None:
    folder = hub.download("org/model").path
    hub.requests.clear()
    assert hub.download("org/model", HF_HUB_OFFLINE="1").path == folder
    assert hub.download("org/model", HF_ENDPOINT="http://127.0.0.1:9").path == folder
    assert hub.requests == []


def test_offline_mode_without_the_files_is_an_error(hub: FakeHub) -> None:
    told = hub.download("org/model", HF_HUB_OFFLINE="1")
    assert told.kind == "FetchError"
    assert told.message == (
        "org/model: the cache is incomplete, and HF_HUB_OFFLINE forbids downloads"
    )
    assert hub.requests == []


def test_no_network_and_no_files_is_an_error(hub: FakeHub) -> None:
    told = hub.download("org/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert told.kind == "FetchError"
    assert told.message.startswith("org/model: the download failed: ")
    assert "(http://127.0.0.1:9; try again" in told.message
    assert "\n" not in told.message


@pytest.mark.slow
def test_a_slow_hub_is_an_error(hub: FakeHub) -> None:
    hub.delay = 3.0
    variables = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "NO_PAUSES": "between tries"}
    told = hub.download("org/model", **variables)
    assert told.kind == "FetchError"
    assert "is too slow: try again (what has arrived is kept), or set" in told.message


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("org/none", "", "org/none: the hub has no such repository, or it is private: then"),
        ("org/model", "v9", "org/model@v9: the repository has no such revision"),
        ("org/gated", "", "org/gated: the repository is gated: request access on its page"),
        ("a/b/c", "", "a/b/c: invalid repository name: expected organisation/name"),
    ],
)
def test_a_failed_download_is_reported_in_a_line(
    hub: FakeHub, name: str, revision: str, message: str
) -> None:
    hub.repositories["org/gated"] = Repository(MODEL, gated=True)
    told = hub.download(name, revision=revision)
    assert told.kind == "FetchError"
    assert told.message.startswith(message)
    assert "\n" not in told.message


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        (
            {"config.json": b"{}", "pytorch_model.bin": b"a pickle"},
            "model",
            ": pytorch_model.bin is a pickle, which can run any code, and is never downloaded",
        ),
        (ADAPTER, "model", ": it is an adapter, not a model"),
        (MODEL, "adapter", ": it is a model, not an adapter"),
        ({"m.Q4_K.gguf": b"GGUF"}, "model", ": download m.Q4_K.gguf and name the file"),
        ({"README.md": b"words"}, "model", "org/other has no config.json and no model.safetensors"),
    ],
)
def test_a_repository_without_the_files_says_what_it_has(
    hub: FakeHub, files: dict[str, bytes], kind: str, message: str
) -> None:
    hub.repositories["org/other"] = Repository(files)
    told = hub.download("org/other", kind=kind)
    assert told.kind == "CheckpointError"
    assert message in told.message


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("org/name", True),
        ("org/name@v1.0", True),
        ("Org-1/a.b_c@refs/pr/1", True),
        ("name", False),
        ("./org/name", False),
        ("../name", False),
        ("/org/name", False),
        ("org/name/a/folder", True),
        ("org/name/folder@main", True),
        ("org/name/", False),
        ("org/name/../other", False),
        ("org/name@", False),
        ("org/", False),
        ("org/nämé", False),
    ],
)
def test_a_name_of_the_hub_has_an_organisation(text: str, *, is_one: bool) -> None:
    assert is_hub_name(text) is is_one


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tinygrad-peft\[hub\]'"):
        download_from_hub("org/name")


def test_the_fake_lists_its_repository(hub: FakeHub) -> None:
    """Guard the fake itself, so that its faults are not taken for the hub's."""
    folder = hub.download("org/model").path
    assert folder is not None
    assert json.loads((folder / "config.json").read_text("utf-8")) == {}
    assert "GET /api/models/org/model/revision/main" in hub.requests
