"""Weights whose own place cannot be written are saved in another one."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.train.toys import adapted
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.train.best_weights import BestWeights
from tinygrad_peft.train.rescue import saved_elsewhere


def write(folder: Path) -> None:
    (folder / "weights").write_text("new")


def full(folder: Path) -> None:
    write(folder)
    raise OSError("no space left")


def test_the_place_is_a_new_folder_beside(tmp_path: Path) -> None:
    place = saved_elsewhere(tmp_path / "out", write)
    assert place is not None
    assert place.parent == tmp_path
    assert place.name.startswith("out-rescued-")
    assert (place / "weights").read_text() == "new"


def test_the_next_place_is_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = saved_elsewhere(tmp_path / "missing" / "out", write)
    assert place is not None
    assert place.parent == tmp_path


def test_nothing_is_left_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert saved_elsewhere(tmp_path / "out", full) is None
    assert not list(tmp_path.iterdir())


def test_the_error_of_a_run_names_the_place(tmp_path: Path) -> None:
    out, peft = tmp_path / "out", adapted()
    best = BestWeights(peft.trainable_parameters(), out, peft.save_pretrained)
    (out / "adapter_config.json").mkdir(parents=True)  # somebody is in the way
    message = (
        r"adapter_config\.json is a folder; the weights are saved in .*out-rescued-\w+ instead"
    )
    with pytest.raises(CheckpointError, match=message):
        best.keep(step=1)
    (place,) = tmp_path.glob("out-rescued-*")
    assert (place / "adapter_model.safetensors").is_file()


def test_an_error_without_another_place_is_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"cannot be written: no space left$"):
        BestWeights([], tmp_path / "out", full).keep(step=1)


def test_a_place_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file cannot be written: "):
        BestWeights([], tmp_path / "file", write)


def test_a_disk_without_room_for_the_weights_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = adapted()
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(CheckpointError, match=r"out cannot be written: expected .* MB free"):
        BestWeights(peft.trainable_parameters(), tmp_path / "out", peft.save_pretrained)
    assert not (tmp_path / "out").exists()
