"""One process at a time writes into a folder."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.files.killing import in_fork
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import claimed, claims, saving, transaction


@contextmanager
def another_process(folder: Path) -> Iterator[int]:
    """Let another process claim a folder; yields its id. It is killed at the end."""
    told, tell = os.pipe()

    def act() -> None:
        with claimed(folder):
            os.write(tell, str(os.getpid()).encode())
            signal.pause()

    thread = threading.Thread(target=in_fork, args=(act,))
    thread.start()
    process = int(os.read(told, 20))
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        thread.join()
        os.close(told)
        os.close(tell)


def test_a_folder_is_made_and_removed_if_nothing_is_in_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "out"):
        (tmp_path / "out" / "a").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_second_process_learns_who_has_the_folder_and_since_when(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        message = rf"{tmp_path} is being written by process {process}, since 2\d{{3}}-.*:.*: wait"
        with pytest.raises(CheckpointError, match=message), claimed(tmp_path):
            raise AssertionError("the block must not run")


def test_a_claim_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with another_process(tmp_path):
        pass
    with claimed(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_save_waits_for_a_claim_and_then_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "_PATIENCE", 0.1)
    with (
        another_process(tmp_path) as process,
        pytest.raises(CheckpointError, match=f"being written by process {process}"),
        saving(tmp_path),
    ):
        raise AssertionError("the block must not run")
    with saving(tmp_path) as save:
        save.path("a").write_text("")


def test_the_run_that_has_a_folder_saves_into_it_and_may_claim_it_again(tmp_path: Path) -> None:
    with claimed(tmp_path), claimed(tmp_path), saving(tmp_path) as save:
        save.path("a").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_second_run_in_another_thread_is_refused_and_its_saves_are_not(tmp_path: Path) -> None:
    errors: list[str] = []

    def second() -> None:
        with saving(tmp_path) as save:
            save.path("a").write_text("")
        try:
            with claimed(tmp_path):
                pass
        except CheckpointError as error:
            errors.append(str(error))

    with claimed(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"being written by process {os.getpid()}, since" in errors[0]
    assert (tmp_path / "a").exists()


def test_a_fork_does_not_inherit_a_claim(tmp_path: Path) -> None:
    def act() -> None:
        with pytest.raises(CheckpointError, match="being written by"), claimed(tmp_path):
            pass

    with claimed(tmp_path):
        assert in_fork(act) == 0


def test_two_names_of_one_folder_are_one_claim(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with (
        another_process(tmp_path / "out"),
        pytest.raises(CheckpointError, match="being written"),
        claimed(tmp_path / "link"),
    ):
        pass


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"file/out cannot be written: "),
        claimed(tmp_path / "file" / "out"),
    ):
        pass


def test_a_claim_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("text")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / claims.CLAIM).symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointError, match="cannot be written"), claimed(tmp_path / "out"):
        pass
    assert (tmp_path / "victim").read_text() == "text"


def test_without_locks_of_the_system_a_claim_holds_between_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "fcntl", None)
    with claimed(tmp_path), saving(tmp_path) as save:
        save.path("a").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
