from importlib.util import find_spec
from pathlib import Path

import pytest

missing = [name for name in ("click", "rich", "tokenizers") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if missing else []

if not missing:
    from tests.cli.toys import Commands, write_world


@pytest.fixture
def commands(capsys: pytest.CaptureFixture[str]) -> "Commands":
    return Commands(capsys)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data; nothing may be changed in it."""
    return write_world(tmp_path_factory.mktemp("world"))
