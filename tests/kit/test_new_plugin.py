import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from tinygrad_peft.errors import CheckpointError, ConfigError
from tinygrad_peft.kit import KINDS, NewPlugin, write_plugin
from tinygrad_peft.peft import Host

ROOT = Path(__file__).parent.parent.parent
LONG = "a_rather_long_method_nam"


def run(*arguments: str | Path, folder: Path, path: Path | None = None) -> str:
    """Run a module of Python there, with `path` in front; it must succeed."""
    paths = [str(path), *sys.path] if path else sys.path
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(plugin: NewPlugin, folder: Path, into: Path) -> None:
    """Make the metadata that an installation would have, beside a link to the module."""
    (into / plugin.module).symlink_to(folder / plugin.module)
    info = into / f"{plugin.module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {plugin.distribution}\nVersion: 0.1.0\n", "utf-8"
    )
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    ((name, module),) = project["entry-points"]["tinygrad_peft"].items()
    (info / "entry_points.txt").write_text(f"[tinygrad_peft]\n{name} = {module}\n", "utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_whole_distribution(kind: str, tmp_path: Path) -> None:
    folder = write_plugin(NewPlugin("mild_shift", kind), tmp_path)
    assert folder == tmp_path / "tinygrad-peft-mild-shift"
    assert sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()) == [
        "README.md",
        "pyproject.toml",
        "tests/test_promises.py",
        "tinygrad_peft_mild_shift/__init__.py",
        "tinygrad_peft_mild_shift/py.typed",
    ]
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["tinygrad_peft"] == {"mild_shift": "tinygrad_peft_mild_shift"}
    own = version("tinygrad-peft")
    assert project["dependencies"] == ["numpy>=2.0", f"tinygrad-peft>={own},<0.2"]
    method = (folder / "tinygrad_peft_mild_shift" / "__init__.py").read_text("utf-8")
    assert "# ---- The formula" in method
    assert "class MildShiftConfig" in method
    assert "example" not in method.lower()
    assert [file for file in tmp_path.iterdir() if file != folder] == []


@pytest.mark.parametrize("name", ["ab", LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_formatted_and_linted_under_any_name(
    kind: str, name: str, tmp_path: Path
) -> None:
    pytest.importorskip("ruff")
    folder = write_plugin(NewPlugin(name, kind), tmp_path)
    run("ruff", "format", "--check", "--no-cache", ".", folder=folder)
    run("ruff", "check", "--no-cache", ".", folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_suite_of_each_kind_is_green_at_once(kind: str, tmp_path: Path) -> None:
    plugin = NewPlugin("mild_shift", kind)
    folder = write_plugin(plugin, tmp_path)
    installed(plugin, folder, tmp_path)
    out = run("pytest", "-q", "-p", "no:cacheprovider", folder=folder, path=tmp_path)
    assert " passed" in out


@pytest.mark.slow
def test_each_kind_has_strict_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for kind in KINDS:
        folder = write_plugin(NewPlugin(f"my_{kind.replace('-', '_')}", kind), tmp_path)
        cache = f"--cache-dir={tmp_path / 'cache'}"
        run("mypy", cache, folder=folder, path=folder)


@pytest.mark.slow
def test_a_new_distribution_is_installed_from_its_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    plugin = NewPlugin("mild_shift", "schedule")
    folder, target = write_plugin(plugin, tmp_path), tmp_path / "target"
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run("pip", "wheel", *offline, "-w", tmp_path, folder, folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"tinygrad_peft_mild_shift/__init__.py", "tinygrad_peft_mild_shift/py.typed"} < {*names}
    run("pip", "install", *offline, "--target", target, wheel, folder=tmp_path)
    listed = run("tinygrad_peft", "methods", folder=tmp_path, path=target)
    assert "mild_shift: tinygrad-peft-mild-shift 0.1.0" in listed.splitlines()


def test_all_names_that_are_taken_or_invalid_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "tinygrad-peft-lora").mkdir()
    with pytest.raises(ConfigError) as error:
        write_plugin(NewPlugin("lora", "afine"), tmp_path)
    assert str(error.value).splitlines() == [
        "cannot make the plugin 'lora':",
        f"  - kind: expected one of {', '.join(KINDS)}, got 'afine'",
        "  - an installed plugin provides the method 'lora'",
        "  - the entry point 'lora' belongs to tinygrad-peft",
        "  - the module 'tinygrad_peft_lora' exists",
        f"  - {tmp_path / 'tinygrad-peft-lora'} exists",
    ]
    assert list((tmp_path / "tinygrad-peft-lora").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mild", "expected lower-case letters and digits, with single underscores between them"),
        ("mild__shift", "got 'mild__shift'"),
        ("../mild", "expected lower-case letters"),
        ("", "expected lower-case letters"),
        (f"{LONG}e", "expected at most 24 characters, got 25"),
        ("lambda", "'lambda' is a keyword of Python"),
        ("tests", "pytest takes classes that start with Test for tests"),
        ("bitfit", "the distribution 'tinygrad-peft-bitfit' is installed"),
    ],
)
def test_a_bad_name_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        write_plugin(NewPlugin(name), tmp_path)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[..., int] = Path.write_text

    def full(self: Path, *args: str, **options: str) -> int:
        if self.name == "test_promises.py":
            raise OSError("no space left")
        return write(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="no space left"):
        write_plugin(NewPlugin("mild_shift"), tmp_path, Host.installed())
    assert list(tmp_path.iterdir()) == []
