import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden() -> Callable[[str], Path]:
    """The folder of a golden checkpoint."""
    return lambda name: GOLDEN / name


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A golden checkpoint in a folder of its own, to be spoilt."""
    return lambda name: Path(shutil.copytree(GOLDEN / name, tmp_path / name))
