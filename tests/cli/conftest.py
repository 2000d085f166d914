from importlib.util import find_spec
from pathlib import Path

import pytest

missing = [name for name in ("click", "rich", "tokenizers") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py", "*/test_*.py"] if missing else []

if not missing:
    from tests.cli.toys import Commands, write_world


@pytest.fixture
def commands(capsys: pytest.CaptureFixture[str]) -> "Commands":
    return Commands(capsys)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data; nothing may be changed in it."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TINYGRAD_PEFT_CACHE", str(folder))
    for name in ("PIP_INDEX_URL", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return folder
