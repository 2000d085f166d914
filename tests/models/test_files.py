from pathlib import Path

import pytest

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models.files import read_json_object, replacing


def test_a_file_is_replaced_when_all_went_well(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "new")]


def test_a_file_stays_what_it_was_when_something_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_folder_is_no_file_to_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: it is no regular file"):
        read_json_object(tmp_path)


def test_bytes_that_are_no_text_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_json_object(tmp_path / "a")
