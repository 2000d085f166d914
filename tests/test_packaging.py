import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, entry_points
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PLUGINS = sorted(path.name for path in (ROOT / "plugins").glob("tinygrad_peft_*"))
# A plugin of this project or of a third party is known by its entry point alone.
INSTALLED = [
    "tinygrad_peft",
    *sorted({e.module.partition(".")[0] for e in entry_points(group="tinygrad_peft")}),
]
EXTRAS = ("click", "gguf", "huggingface_hub", "matplotlib", "rich", "tokenizers")
PEERS = ("bitsandbytes", "peft", "torch", "transformers")

needs_sources = pytest.mark.skipif(
    not (ROOT / "tinygrad_peft").is_dir(), reason="these tests were copied away from the sources"
)


def folder_of(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def modules_of(package: str) -> Iterator[str]:
    """List every module that importing does not run as a program."""
    folder = folder_of(package)
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        if parts[-1] != "__main__":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_or_skip_without_its_extra(module: str) -> object:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in EXTRAS:
            pytest.skip(f"{module} needs {error.name}")
        raise


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_methods_of_this_project_are_installed_by_their_entry_points() -> None:
    own = {
        e.name: e.module
        for e in distribution("tinygrad-peft").entry_points.select(group="tinygrad_peft")
    }
    assert own["lora"] == "tinygrad_peft_lora.plugin"
    assert {module.partition(".")[0] for module in own.values()} <= set(INSTALLED)


@pytest.mark.parametrize("package", INSTALLED)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (folder_of(package) / "py.typed").is_file()


@pytest.mark.parametrize("package", INSTALLED)
def test_every_package_lists_its_public_names(package: str) -> None:
    assert hasattr(importlib.import_module(package), "__all__")


@pytest.mark.parametrize("module", [m for package in INSTALLED for m in modules_of(package)])
def test_public_names_resolve_and_are_listed_once(module: str) -> None:
    imported = import_or_skip_without_its_extra(module)
    names = list(getattr(imported, "__all__", ()))
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(imported, name)] == []


@pytest.mark.parametrize("package", INSTALLED)
def test_importing_a_package_loads_no_extra_and_no_peer(package: str, tmp_path: Path) -> None:
    program = f"import sys, {package}; print(*sys.modules, sep='\\n')"
    loaded = run_python("-c", program, cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    modules = set(loaded.stdout.split())
    assert package in modules
    assert modules & {*EXTRAS, *PEERS} == set()


@pytest.mark.slow
def test_mypy_strict_sees_the_installed_packages_from_a_clients_folder(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for program in ("accepts.py", "rejects.py"):
        (tmp_path / program).write_bytes((TESTS / "typing" / program).read_bytes())
    checked = run_python("-m", "mypy", "--strict", "accepts.py", "rejects.py", cwd=tmp_path)
    assert checked.stdout == "Success: no issues found in 2 source files\n", checked.stderr


@needs_sources
@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_plugin_folder_is_packaged_declared_and_kept_out_of_the_core(plugin: str) -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    linter = config["tool"]["importlinter"]
    core = next(c for c in linter["contracts"] if c.get("source_modules") == ["tinygrad_peft"])
    assert f"plugins/{plugin}" in config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    points = config["project"]["entry-points"]["tinygrad_peft"].values()
    assert plugin in {module.partition(".")[0] for module in points}
    assert plugin in linter["root_packages"]
    assert plugin in core["forbidden_modules"]


@needs_sources
@pytest.mark.slow
def test_the_wheel_holds_the_core_and_the_methods_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("build")
    built = run_python(
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
        cwd=tmp_path,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    files = {Path(name) for name in ZipFile(wheel).namelist()}
    code = {file for file in files if not file.parts[0].endswith(".dist-info")}
    assert {file.parts[0] for file in code} == {"tinygrad_peft", *PLUGINS}
    assert {Path(p, "py.typed") for p in ("tinygrad_peft", *PLUGINS)} <= code
    assert {file for file in code if file.suffix == ".py"} == set(sources())


def sources() -> Iterator[Path]:
    for root, packages in ((ROOT, ["tinygrad_peft"]), (ROOT / "plugins", PLUGINS)):
        for package in packages:
            yield from (path.relative_to(root) for path in (root / package).rglob("*.py"))
