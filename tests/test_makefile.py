import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = "tinygrad_peft needs Python 3.11 or newer, for example: make PYTHON=python3.12"

pytestmark = [
    pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="the Makefile was not copied"),
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]


def run_make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder that has no virtual environment yet."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    # A make that runs these tests passes its own options on.
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def python_that(folder: Path, *, fails_at: str) -> Path:
    """Write a python 3.9.2 that fails each program with `fails_at` in its text."""
    script = folder / "python"
    lines = ("#!/bin/sh", 'case "$*" in', "--version) echo Python 3.9.2 ;;")
    script.write_text("\n".join([*lines, f"*'{fails_at}'*) exit 1 ;;", "esac", ""]), "utf-8")
    script.chmod(0o755)
    return script


def complaint_of(made: subprocess.CompletedProcess[str]) -> str:
    assert made.returncode != 0
    return made.stderr.splitlines()[0]


def test_make_alone_lists_the_targets(tmp_path: Path) -> None:
    listed = run_make(tmp_path).stdout.split()
    assert {"demo", "test", "bench", "interop", "wheel-test", "clean"} <= set(listed)


@pytest.mark.parametrize("target", ["test", "demo", "interop", "bench", "wheel-test"])
def test_make_says_in_a_line_that_there_is_no_python(target: str, tmp_path: Path) -> None:
    made = run_make(tmp_path, target, "PYTHON=no-such-python")
    assert complaint_of(made) == f"'no-such-python' was not found; {NEEDED}"


def test_make_says_in_a_line_that_python_is_a_shim_without_a_version(tmp_path: Path) -> None:
    shim = tmp_path / "python3.12"
    shim.write_text(
        "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n", "utf-8"
    )
    shim.chmod(0o755)
    made = run_make(tmp_path, "test", f"PYTHON={shim}")
    assert complaint_of(made) == (
        f"'{shim}' does not run: pyenv: python3.12: command not found; name an interpreter that is"
        " installed, for example: make PYTHON=~/.pyenv/versions/3.12.1/bin/python3"
    )


def test_another_python_gets_an_environment_of_its_own(tmp_path: Path) -> None:
    listed = [
        run_make(tmp_path, "--dry-run", "lint", f"PYTHON={python}").stdout
        for python in (sys.executable, python_that(tmp_path, fails_at="nothing"))
    ]
    assert f".venv/.ready-{sys.version.split()[0]}" in listed[0]
    assert ".venv/.ready-" in listed[1]
    assert listed[0] != listed[1]


def test_make_says_in_a_line_that_python_is_too_old(tmp_path: Path) -> None:
    python = python_that(tmp_path, fails_at="version_info")
    made = run_make(tmp_path, "test", f"PYTHON={python}")
    assert complaint_of(made) == f"'{python}' is Python 3.9.2; {NEEDED}"


def test_make_says_in_a_line_that_python_lacks_venv(tmp_path: Path) -> None:
    python = python_that(tmp_path, fails_at="import ensurepip, venv")
    made = run_make(tmp_path, "test", f"PYTHON={python}")
    assert complaint_of(made) == (
        f"'{python}' cannot make virtual environments: install its venv module"
        " (on Debian and Ubuntu: apt install python3-venv)"
    )
