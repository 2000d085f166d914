"""Pipes, devices, sockets and folders where a file is expected: refused, and never waited for."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peft.small import LLAMA, small
from tinygrad_peft.errors import TinygradPeftError
from tinygrad_peft.models import load_model, save_model
from tinygrad_peft.peft import PeftModel, get_peft_model, inspect_path
from tinygrad_peft.train.comparison_result import read_comparison
from tinygrad_peft.train.examples import read_examples
from tinygrad_peft_lora import LoraConfig

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))


READ: dict[str, Callable[[Path], object]] = {
    "model/config.json": lambda path: load_model(path.parent),
    "model/model.safetensors": lambda path: load_model(path.parent),
    "model/model.safetensors.index.json": lambda path: load_model(path.parent),
    "adapter/adapter_config.json": lambda path: PeftModel.from_pretrained(
        small(LLAMA), path.parent
    ),
    "adapter/adapter_model.safetensors": lambda path: PeftModel.from_pretrained(
        small(LLAMA), path.parent
    ),
    "adapter/recipe.json": lambda path: PeftModel.from_pretrained(small(LLAMA), path.parent),
    "a.gguf": load_model,
    "a.safetensors": inspect_path,
    "a.jsonl": lambda path: read_examples(path, "causal-lm"),
    "a.csv": lambda path: read_examples(path, "causal-lm"),
    "comparison.json": read_comparison,
}
PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal or pipe": lambda path: path.symlink_to("/dev/stdin"),
    "a socket": _bind,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("name", READ)
def test_what_is_not_a_file_is_refused(
    name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 108 bytes
    save_model(small(LLAMA), tmp_path / "model")
    get_peft_model(small(LLAMA), LoraConfig(r=2)).save_pretrained(tmp_path / "adapter")
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if "index" in name:
        (tmp_path / "model" / "model.safetensors").unlink()
    PLACES[what](path)
    with pytest.raises(TinygradPeftError):
        READ[name](path)
