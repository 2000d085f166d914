"""The files beside a checkpoint's weights."""

from pathlib import Path

import pytest

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models import copy_companions

KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "license.md",
    "NOTICE",
)
LEFT = ("config.json", "model.safetensors", "README.md", "pytorch_model.bin", "metrics.json")


def write(folder: Path, names: tuple[str, ...], content: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"{content} {name}\r\n".encode())
    return folder


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_every_companion_is_copied_to_the_byte_and_nothing_else(tmp_path: Path) -> None:
    source = write(tmp_path / "source", KEPT + LEFT, "some")
    copy_companions(source, tmp_path / "out")
    assert names(tmp_path / "out") == set(KEPT)
    for name in KEPT:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_companions_of_an_older_model_do_not_stay(tmp_path: Path) -> None:
    source = write(tmp_path / "source", ("tokenizer.json", "LICENSE"), "new")
    out = write(tmp_path / "out", (*KEPT, "README.md"), "old")
    copy_companions(source, out)
    assert names(out) == {"tokenizer.json", "LICENSE", "README.md"}
    assert (out / "LICENSE").read_text() == "new LICENSE\n"


def test_links_of_a_cache_are_copied_as_files(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("template")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "chat_template.jinja").symlink_to(blob)
    copy_companions(tmp_path / "source", tmp_path / "out")
    copied = tmp_path / "out" / "chat_template.jinja"
    assert copied.read_text() == "template"
    assert not copied.is_symlink()


def test_a_companion_too_large_for_one_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "source", ("LICENSE",), "some")
    with (source / "tokenizer.model").open("wb") as holes:
        holes.truncate(200_000_000)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        copy_companions(source, tmp_path / "out")
    assert not (tmp_path / "out" / "LICENSE").exists()
