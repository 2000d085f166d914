"""Names of models by their source."""

from pathlib import Path

import pytest

from tests.peft.small import small
from tinygrad_peft.models import load_model, save_model
from tinygrad_peft.models.fetch import name_and_revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_snapshot_in_the_hubs_cache_is_named_by_repository_and_commit() -> None:
    for name in ("org/some.name", "gpt2"):
        folder = f"/anywhere/hub/models--{name.replace('/', '--')}/snapshots/{COMMIT}"
        assert name_and_revision(folder) == name_and_revision(f"{folder}/") == (name, COMMIT)


def test_a_fetched_model_is_named_as_its_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYGRAD_PEFT_CACHE", str(tmp_path))
    assert name_and_revision(tmp_path / "minilm-l6") == ("minilm-l6", None)
    assert name_and_revision(tmp_path / "smollm2" / "model.gguf") == ("smollm2", None)
    assert name_and_revision(tmp_path / "mine") == (str(tmp_path / "mine"), None)


def test_another_path_is_kept_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path / "my-model")
    assert name_and_revision("models/mine") == ("models/mine", None)
    assert name_and_revision(tmp_path) == (str(tmp_path), None)
    assert name_and_revision(".") == ("my-model", None)


def test_a_loaded_model_has_its_name_and_a_new_one_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = small()
    save_model(made, "mine")
    loaded = load_model("mine")
    assert (loaded.name_or_path, loaded.revision) == ("mine", None)
    assert (made.name_or_path, made.revision) == (None, None)
