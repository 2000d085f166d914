"""Files appear in a folder all at once, or not at all."""

from pathlib import Path

import pytest

from tinygrad_peft.train.best_weights import replace_files


def test_files_replace_only_files_of_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("old")
    (tmp_path / "log").write_text("kept")

    def save(folder: Path) -> None:
        (folder / "weights").write_text("new")
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("deeper")

    replace_files(tmp_path, save)
    replace_files(tmp_path, save)  # where `part` exists
    found = {
        str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()
    }
    assert found == {"weights": "new", "log": "kept", str(Path("part", "weights")): "deeper"}


def test_a_save_that_fails_midway_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("old")

    def save(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        replace_files(tmp_path, save)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("weights", "old")]
