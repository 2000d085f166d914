import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden() -> Callable[[str], Path]:
    """Find the folder of a golden checkpoint."""
    return lambda name: GOLDEN / name


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a golden checkpoint, to be spoilt."""
    return lambda name: Path(shutil.copytree(GOLDEN / name, tmp_path / name))
