import os
from pathlib import Path

import pytest

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import (
    is_plain_name,
    read_json_object,
    read_optional_object,
    refuse_pickle,
    sha256_of,
    write_json,
)
from tinygrad_peft.files.reading import LARGEST_JSON


def test_a_folder_is_not_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: expected a regular file"):
        read_json_object(tmp_path)


def test_a_missing_file_is_an_empty_object_where_it_is_optional(tmp_path: Path) -> None:
    assert read_optional_object(tmp_path / "a") == {}
    write_json(tmp_path / "a", {"ä": [1]})
    assert (tmp_path / "a").read_bytes() == b'{\n  "\\u00e4": [\n    1\n  ]\n}\n'
    assert read_optional_object(tmp_path / "a") == {"ä": [1]}


def test_a_digest_is_hexadecimal(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-4
    assert sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_bytes_outside_of_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_json_object(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"a": NaN}', "is not JSON: JSON is malformed"),
        (b'{"a": Infinity}', "is not JSON: JSON is malformed"),
        (b'{"a": 1e999}', "is not JSON: Number out of range"),
        (b'{"a": "\\ud800"}', "is not JSON: "),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: Integer value out of range"),
        (b'{"a":' * 100_000, "is not JSON: maximum recursion depth exceeded"),
        (b"[1]", ": expected a JSON object, got a list"),
        (b'{"a": 1, "a": 2}', "has duplicate keys: 'a'"),
        (b'{"a": [{"b": 1, "c": 1, "c": 2, "b": 3}]}', "duplicate keys: 'b', 'c'"),
    ],
)
def test_json_is_read_strictly(tmp_path: Path, text: bytes, told: str) -> None:
    (tmp_path / "a").write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        read_json_object(tmp_path / "a")
    assert str(caught.value).startswith(f"{tmp_path / 'a'}")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(LARGEST_JSON + 1)
    with pytest.raises(CheckpointError, match="has 100,000,001 bytes, expected at most"):
        read_json_object(tmp_path / "a")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(CheckpointError, match="expected a regular file"):
        read_json_object(tmp_path / "a")


@pytest.mark.parametrize("name", ["m.bin", "m.PT", "m.pth", "m.ckpt", "m.pkl"])
def test_a_pickle_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is a pickle, .* save it as safetensors"):
        refuse_pickle(Path(name))
    refuse_pickle(Path("m.safetensors"))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "/a", "a\\b", "C:a", "-a", "a\x00", "a\n", "é", "a" * 201],
)
def test_a_name_that_leads_elsewhere_is_not_plain(name: str) -> None:
    assert not is_plain_name(name)


def test_a_shards_name_is_plain() -> None:
    assert is_plain_name("model-00001-of-00003.safetensors")
