"""Lets the examples of README.md and docs/ run, in a folder with small checkpoints; no fsync."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinygrad_peft.models import named_shape, save_model
from tinygrad_peft.nn import Transformer


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    """Leave out fsync: no test cuts the power, and it takes longer than most of them.

    What is brought to the disk, and in what order, is tested in tests/files. Commands in processes
    of their own do wait.
    """
    fsync, os.fsync = os.fsync, lambda _: None
    yield
    os.fsync = fsync


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my-llama` and `my-bert`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in ("llama", "bert"):
        save_model(Transformer(named_shape(f"small-{family}")), folder / f"my-{family}")
    return folder


@pytest.fixture(autouse=True)
def _examples_stand_beside_checkpoints(request: pytest.FixtureRequest) -> Iterator[None]:
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    before = Path.cwd()
    # docs/course.md makes the checkpoints itself.
    makes_them = request.node.path.name == "course.md"
    os.chdir(request.getfixturevalue("tmp_path" if makes_them else "checkpoints"))
    yield
    os.chdir(before)
