"""Files appear in a folder all at once, or not at all."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.files.killing import FAILED, KILLED, Change, Changes, in_fork, killed_folders
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import Transaction, claimed, replacing, saving, settled
from tinygrad_peft.files.claims import CLAIM

Files = dict[str, str]


def write(folder: Path, files: Files) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def visible(folder: Path) -> Files:
    """Read what a program sees that knows nothing of saves."""
    return {name: text for name, text in read(folder).items() if not name.startswith(".")}


def save_files(folder: Path, files: Files, stale: tuple[str, ...] = ()) -> None:
    with saving(folder) as save:
        for name, text in files.items():
            save.path(name).write_text(text)
        save.remove(stale)


def kill_at(change: Callable[[Change], bool], folder: Path, files: Files) -> None:
    """Kill a save before the first change that is asked for."""

    def act() -> None:
        Changes(lambda seen: change(seen[-1])).start()
        save_files(folder, files)

    assert in_fork(act) == KILLED


def broken_off(folder: Path, files: Files) -> Path:
    """Leave a save that has happened with nothing moved into place; return its stage."""
    kill_at(lambda change: change[0] == "remove" and change[1].endswith(".json"), folder, files)
    (stage,) = folder.glob(".saving-*")
    assert (stage / "journal.json").exists()
    return stage


# ---------- a save ----------


def test_files_are_in_place_after_the_block_and_not_before(tmp_path: Path) -> None:
    write(tmp_path, {"a": "old", "kept": "kept"})
    with saving(tmp_path) as save:
        save.path("a").write_text("new")
        save.path("part/b").write_text("b")
        assert (tmp_path / "a").read_text() == "old"
    assert read(tmp_path) == {"a": "new", "kept": "kept", "part/b": "b"}


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    save_files(tmp_path / "new" / "er", {"a": "a"})
    assert read(tmp_path) == {"new/er/a": "a"}


def test_new_files_may_be_read_only(tmp_path: Path) -> None:
    with saving(tmp_path) as save:
        save.path("a").write_text("a")
        save.path("a").chmod(0o400)
    assert read(tmp_path) == {"a": "a"}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_a_block_that_raises_changes_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    write(tmp_path, {"a": "old", "stale": "s"})
    with pytest.raises(kind), saving(tmp_path) as save:  # noqa: PT012
        save.path("a").write_text("half")
        save.remove(["stale"])
        raise kind
    assert read(tmp_path) == {"a": "old", "stale": "s"}
    with pytest.raises(kind), saving(tmp_path / "new"):
        raise kind
    assert not (tmp_path / "new").exists()


def test_an_error_of_the_system_names_the_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=f"{tmp_path} cannot be written: no space left"),
        saving(tmp_path),
    ):
        raise OSError("no space left")


def test_stale_files_go_with_the_save_and_their_empty_folders_too(tmp_path: Path) -> None:
    write(tmp_path, {"0/a.json": "old", "1/a.json": "old", "1/notes": "kept", "2/a.json": "old"})
    stale = ("0/a.json", "1/a.json", "2/a.json", "absent")
    save_files(tmp_path, {"0/a.json": "new"}, stale)
    assert read(tmp_path) == {"0/a.json": "new", "1/notes": "kept"}
    assert not (tmp_path / "2").exists()


def test_a_save_into_the_new_files_of_another_is_a_part_of_it(tmp_path: Path) -> None:
    write(tmp_path, {"part/stale": "s"})
    with saving(tmp_path) as save:
        with saving(save.staged / "part") as inner:
            assert inner.folder == tmp_path / "part"
            inner.path("b").write_text("b")
            inner.within("deeper").path("c").write_text("c")
            inner.remove(["stale"])
        with replacing(save.staged / "a") as path:
            path.write_text("a")
        assert read(tmp_path / "part") == {"stale": "s"}
    assert read(tmp_path) == {"a": "a", "part/b": "b", "part/deeper/c": "c"}


def test_one_file_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path, {"a": "old"})
    with replacing(tmp_path / "a") as path:
        path.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert read(tmp_path) == {"a": "new"}


def test_threads_save_into_one_folder_at_the_same_time(tmp_path: Path) -> None:
    def work(name: str) -> None:
        for turn in range(5):
            save_files(tmp_path, {f"{name}.json": str(turn), "both.json": name})

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read(tmp_path)
    assert found.pop("both.json") in "abcd"
    assert found == {f"{name}.json": "4" for name in "abcd"}


def test_a_disk_without_room_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"expected 1,000,000,000,000\.0 MB free on its disk"),
        saving(tmp_path, size=10**18),
    ):
        raise AssertionError("the block must not run")
    assert read(tmp_path) == {}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f: (f / "part").write_text(""), "part is a file"),
        (lambda f: (f / "part").symlink_to(f.parent), "part is a link"),
        (lambda f: (f / "part" / "a").mkdir(parents=True), "part/a is a folder"),
    ],
)
def test_places_that_cannot_be_written_are_found_before_the_save_happens(
    tmp_path: Path, prepare: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    prepare(folder)
    (folder / "b").write_text("old")
    with pytest.raises(CheckpointError, match=f"cannot be written: .*{message}"):
        save_files(folder, {"part/a": "new", "b": "new"})
    assert (folder / "b").read_text() == "old"
    assert not list(folder.glob(".*"))


def test_links_among_new_files_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="a cannot be saved: expected a plain file"),
        saving(tmp_path) as save,
    ):
        save.path("a").symlink_to("/etc/passwd")


def test_a_disk_that_fills_while_files_are_written_leaves_the_folder_as_it_was(
    tmp_path: Path,
) -> None:
    resource = pytest.importorskip("resource")
    write(tmp_path, OLD)

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # bytes in any one file
        with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be written: File too large"):
            save_files(tmp_path, {**NEW, "big": "b" * 10_000}, STALE)

    assert in_fork(act) == 0
    assert read(tmp_path) == OLD


def test_files_that_cannot_be_moved_are_named_and_moved_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    message = r"complete in .*\.saving-\w+, and cannot be moved: no space left; the next reader"
    with pytest.raises(CheckpointError, match=message):
        save_files(tmp_path, {"a": "a", "b.json": "b"})
    monkeypatch.undo()
    settled(tmp_path)
    assert read(tmp_path) == {"a": "a", "b.json": "b"}


# ---------- a save that was killed ----------

OLD = {
    "adapter_config.json": "old",
    "adapter_model.safetensors": "old",
    "0-lora/adapter_config.json": "old",
    "0-lora/adapter_model.safetensors": "old",
    "notes.txt": "kept",
}
NEW = {
    "recipe.json": "new",
    "0-lora/adapter_config.json": "new",
    "0-lora/adapter_model.safetensors": "new",
    "1-ia3/adapter_config.json": "new",
    "1-ia3/adapter_model.safetensors": "new",
}
STALE = ("adapter_config.json", "adapter_model.safetensors")


def test_a_save_killed_before_any_change_is_old_or_new(tmp_path: Path) -> None:
    old, after = tmp_path / "old", {**NEW, "notes.txt": "kept"}
    write(old, OLD)
    seen = []
    for folder in killed_folders(old, lambda f: save_files(f, NEW, STALE), tmp_path / "work"):
        foreign = visible(folder)
        for part in ("", "0-lora/", "1-ia3/"):  # as PEFT opens each
            texts = [foreign.get(part + name) for name in STALE]
            assert texts[0] is None or texts[0] == texts[1], texts
        settled(folder)
        found = visible(folder)
        assert found in (OLD, after)
        seen.append(found == after)
        save_files(folder, {"again": ""})  # the next save removes what is left
        assert read(folder) == {**found, "again": ""}
    assert seen == sorted(seen), "old until the save has happened, and new ever after"
    assert {False, True} == set(seen)
    assert len(seen) > 30


def test_finishing_a_save_can_be_killed_too(tmp_path: Path) -> None:
    old = tmp_path / "old"
    write(old, OLD)
    broken_off(old, NEW)
    for folder in killed_folders(old, lambda f: void(settled(f)), tmp_path / "work"):
        settled(folder)
        assert visible(folder) == {**OLD, **NEW}
        assert not list(folder.glob(".saving-*/journal.json"))


def void(_: object) -> None: ...


def test_a_folder_that_is_new_appears_at_once(tmp_path: Path) -> None:
    files = {"plugin/a.toml": "a", "plugin/src/b.py": "b"}
    for folder in killed_folders(tmp_path / "none", lambda f: save_files(f, files), tmp_path / "w"):
        if folder.exists():
            assert visible(folder) in ({}, files)


def test_the_disk_has_the_files_before_the_journal_and_the_moves_before_its_end(
    tmp_path: Path,
) -> None:
    folder, log = tmp_path / "out", tmp_path / "log.json"
    write(folder, OLD)

    def act() -> None:
        changes = Changes()
        changes.start()
        save_files(folder, NEW, STALE)
        log.write_text(json.dumps(changes.seen))

    assert in_fork(act) == 0
    seen = [(kind, Path(path)) for kind, path in json.loads(log.read_text())]
    stage = next(path.parent for _, path in seen if path.name == "journal.draft")
    commit = seen.index(("rename", stage / "journal.draft"))
    end = seen.index(("remove", stage / "journal.json"))
    before = [path for kind, path in seen[:commit] if kind == "fsync"]
    for new in (stage / "new" / name for name in NEW):
        assert new in before
        assert new.parent in before[before.index(new) :], "its name, after its content"
    assert {stage, folder} <= set(before)
    assert before[-1] == stage / "journal.draft"
    assert seen[commit + 1] == ("fsync", stage)
    last_move = max(i for i, (kind, _) in enumerate(seen[:end]) if kind == "rename")
    assert ("fsync", folder) in seen[last_move:end]


def test_readers_of_a_subfolder_finish_a_save_into_the_folder_above(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    broken_off(tmp_path, NEW)
    settled(tmp_path / "1-ia3")
    assert visible(tmp_path) == {**OLD, **NEW}


def test_readers_of_another_subfolder_leave_the_folder_above_alone(tmp_path: Path) -> None:
    write(tmp_path, {**OLD, "other/a": ""})
    stage = broken_off(tmp_path, NEW)
    settled(tmp_path / "other")
    assert stage.exists()


def test_a_folder_without_a_broken_save_is_only_read(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    tmp_path.chmod(0o500)
    try:
        assert settled(tmp_path) == tmp_path
    finally:
        tmp_path.chmod(0o700)
    assert read(tmp_path) == OLD
    assert settled(tmp_path / "missing") == tmp_path / "missing"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_with_a_broken_save_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    broken_off(tmp_path, NEW)
    (tmp_path / CLAIM).unlink(missing_ok=True)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(
            CheckpointError, match=r"was broken off, and cannot be finished: .*denied"
        ):
            settled(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_reader_waits_for_a_process_that_is_about_to_finish(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    broken_off(tmp_path, NEW)
    told, tell = os.pipe()

    def act() -> None:
        with claimed(tmp_path):
            os.write(tell, b".")
            time.sleep(0.3)
            settled(tmp_path)

    with_reader = threading.Thread(target=lambda: void(in_fork(act)))
    with_reader.start()
    os.read(told, 1)
    settled(tmp_path)
    assert visible(tmp_path) == {**OLD, **NEW}
    with_reader.join()
    os.close(told)
    os.close(tell)


# ---------- journals by anybody ----------


def tampered(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    stage = broken_off(folder, NEW)
    journal = json.loads((stage / "journal.json").read_text())
    change(journal)
    (stage / "journal.json").write_text(json.dumps(journal))


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/evil",
        "a/../../evil",
        "..",
        ".",
        "",
        "a//b",
        "a\\..\\evil",
        "C:evil",
        "a\0",
        ".saving-1/new/a",
    ],
)
@pytest.mark.parametrize("place", ["files", "removed"])
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, path: str, place: str) -> None:
    folder = tmp_path / "out"
    write(folder, OLD)

    def change(journal: dict[str, object]) -> None:
        new = {"path": path, "size": 3, "sha256": "0"} if place == "files" else path
        found = journal[place]
        assert isinstance(found, list)
        found.append(new)

    tampered(folder, change)
    with pytest.raises(CheckpointError, match="expected plain relative paths"):
        settled(folder)
    assert visible(folder) == OLD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j.update(format=2), "Invalid enum value 2"),
        (lambda j: j.update(more=1), "unknown field `more`"),
        (lambda j: j.pop("files"), "missing required field `files`"),
        (lambda j: j["files"].append(j["files"][0]), "each path once"),
        (lambda j: j["files"][0].update(size=4), "expected 4 bytes, got 3"),
        (lambda j: j["files"][0].update(sha256="0"), "expected another SHA-256"),
        (lambda j: j["files"].append({"path": "a", "size": 1, "sha256": "0"}), "a is missing"),
    ],
)
def test_a_journal_that_does_not_fit_its_files_changes_nothing(
    tmp_path: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    write(tmp_path, OLD)
    tampered(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        settled(tmp_path)
    assert visible(tmp_path) == OLD


def test_journals_and_places_that_are_links_are_refused(tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "other"
    write(folder, OLD)
    other.mkdir()
    stage = broken_off(folder, NEW)
    shutil.rmtree(folder / "0-lora")
    (folder / "0-lora").symlink_to(other)
    with pytest.raises(CheckpointError, match="0-lora is a link"):
        settled(folder)
    (folder / "0-lora").unlink()
    (stage / "journal.json").rename(tmp_path / "journal.json")
    (stage / "journal.json").symlink_to(tmp_path / "journal.json")
    with pytest.raises(CheckpointError, match=r"journal\.json is a link"):
        settled(folder)
    assert read(other) == {}


def as_link(stage: Path, other: Path) -> None:
    (stage / "new").rename(other / "new")
    (stage / "new").symlink_to(other / "new")


def with_link(stage: Path, other: Path) -> None:
    (stage / "new" / "more").symlink_to(other)


def with_file(stage: Path, _: Path) -> None:
    (stage / "new" / "more").mkdir()
    (stage / "new" / "more" / "a.json").write_text("{}")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (as_link, r"new is a link"),
        (with_link, r"more cannot be saved: expected a plain file"),
        (with_file, r"more/a\.json is not in the journal"),
    ],
)
def test_new_files_that_no_save_has_written_are_refused(
    tmp_path: Path, tamper: Callable[[Path, Path], None], message: str
) -> None:
    folder, other = tmp_path / "out", tmp_path / "other"
    write(folder, OLD)
    other.mkdir()
    tamper(broken_off(folder, NEW), other)
    before = read(other)
    with pytest.raises(CheckpointError, match=message):
        settled(folder)
    assert visible(folder) == OLD
    assert read(other) == before


def test_a_stage_that_is_a_link_is_ignored(tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "other"
    write(folder, {"a.json": "old", "b": ""})
    write(other, {"a.json": "old"})
    broken_off(other, {"a.json": "new", "b": "new"}).rename(tmp_path / "moved")
    (folder / ".saving-1").symlink_to(tmp_path / "moved")
    settled(folder)
    assert visible(folder) == {"a.json": "old", "b": ""}


def test_a_parts_folder_is_the_folder_itself(tmp_path: Path) -> None:
    with saving(tmp_path) as save:
        assert isinstance(save, Transaction)
        assert save.folder == tmp_path


def test_failures_in_a_fork_are_seen() -> None:
    def act() -> None:
        raise SystemExit

    assert in_fork(act) == FAILED
