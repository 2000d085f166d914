"""Rules beyond import-linter: names that may be imported, and not only modules."""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from tinygrad_peft.peft import Host, methods_of

PLUGINS = sorted({point.module.partition(".")[0] for point in entry_points(group="tinygrad_peft")})
REFERENCE = "tinygrad_peft.reference"


def files_of(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Yield (module, name) per `from module import name`, (module, None) per `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def is_public(module: str, name: str | None) -> bool:
    """Tell whether `module` is a package or stands alone, and offers `name`."""
    if any(part.startswith("_") for part in module.split(".")) or is_inside_a_package(module):
        return False
    if name is None:
        return True
    names = getattr(importlib.import_module(module), "__all__", None)
    if names is not None and name in names:
        return True
    if name.startswith("_"):
        return False
    inner = f"{module}.{name}"
    return names is None or (is_module(inner) and not is_inside_a_package(inner))


def is_inside_a_package(module: str) -> bool:
    """Tell whether a package's `__init__` speaks for the module: ops.dense, models.fetch.hub."""
    return module.count(".") > 1 and not is_package(module)


def is_package(dotted: str) -> bool:
    spec = find_spec(dotted)
    return spec is not None and spec.submodule_search_locations is not None


def is_module(dotted: str) -> bool:
    try:
        return find_spec(dotted) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(
    ("statement", "public"),
    [
        ("import tinygrad_peft", True),
        ("from tinygrad_peft import no_such_name", False),
        ("from tinygrad_peft import __doc__", False),
        ("from tinygrad_peft._private import name", False),
        ("import tinygrad_peft._private", False),
        ("from tinygrad_peft.models import load_model", True),
        ("from tinygrad_peft.models.fetch import fetch", True),
        ("from tinygrad_peft.models.fetch.cache import fetch", False),
        ("from tinygrad_peft.models.checkpoint import load_model", False),
        ("from tinygrad_peft.models import checkpoint", False),
        ("from tinygrad_peft.errors import ConfigError", True),
    ],
)
def test_the_rule_tells_public_from_private(statement: str, *, public: bool) -> None:
    ((module, name),) = imports(ast.parse(statement))
    assert is_public(module, name) == public


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_imports_only_public_names(plugin: str) -> None:
    private = [
        f"{path.name}: from {module} import {name}"
        for path in files_of(plugin)
        for module, name in imports(ast.parse(path.read_text("utf-8")))
        if module.startswith("tinygrad_peft")
        and module.split(".")[0] != plugin
        and not is_public(module, name)
    ]
    assert private == []


PEFT = "tinygrad_peft.peft"
OUTSIDE_PEFT = [
    *(f"tinygrad_peft.{floor}" for floor in ("cli", "testing", "train")),
    *PLUGINS,
    *(["docs.pictures"] if find_spec("docs") else []),  # the wheel's tests have none
    "tests",
]


def test_the_public_names_of_peft_are_its_all() -> None:
    peft = importlib.import_module(PEFT)
    own = {
        n for n, value in vars(peft).items() if n[0] != "_" and not isinstance(value, ModuleType)
    }
    assert own | {"hookspecs"} == set(peft.__all__)


@pytest.mark.parametrize("package", OUTSIDE_PEFT)
def test_only_public_names_of_peft_are_imported_outside_it(package: str) -> None:
    public = importlib.import_module(PEFT).__all__
    root = Path(__file__).parent
    own_tests = (root / "peft", root / "interop")  # the first mirrors the modules of peft
    paths = root.rglob("*.py") if package == "tests" else files_of(package)
    private = [
        f"{path.name}: from {module} import {name}"
        for path in paths
        if not any(path.is_relative_to(folder) for folder in own_tests)
        for module, name in imports(ast.parse(path.read_text("utf-8")))
        if module.startswith(f"{PEFT}.") or (module == PEFT and name not in public)
    ]
    assert private == []


def test_no_module_of_the_core_imports_the_package_that_gathers_them() -> None:
    # `from tinygrad_peft import Tensor` inside the core would be a cycle through __init__.py. The
    # templates are an author's files, and nothing imports them.
    upward = [
        f"{path.name}: from tinygrad_peft import {name}"
        for path in files_of("tinygrad_peft")
        if path.parent.name != "templates"
        for module, name in imports(ast.parse(path.read_text("utf-8")))
        if module == "tinygrad_peft" and not (name and is_module(f"tinygrad_peft.{name}"))
    ]
    assert upward == []


@pytest.mark.parametrize(
    "path", files_of(REFERENCE), ids=lambda path: ".".join(path.with_suffix("").parts[-2:])
)
def test_the_reference_imports_numpy_alone(path: Path) -> None:
    allowed = {"numpy", *sys.stdlib_module_names}
    foreign = [
        module
        for module, _ in imports(ast.parse(path.read_text("utf-8")))
        if module.split(".")[0] not in allowed and not f"{module}.".startswith(f"{REFERENCE}.")
    ]
    assert foreign == []


GENERAL = {"adapter"}  # a method's name, and the word for what every method makes


def test_the_core_knows_no_method_by_its_name() -> None:
    methods = methods_of(Host.installed()).keys() - GENERAL
    assert len(methods) > 5
    name = re.compile(rf"(?<![^\W_])({'|'.join(sorted(methods))})(?![^\W_])", re.IGNORECASE)
    root = Path(str(files("tinygrad_peft")))
    found = [
        f"{path.relative_to(root)}:{number}: {match[0]}"
        for path in files_of("tinygrad_peft")
        if REFERENCE.partition(".")[2] not in path.relative_to(root).parts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for match in name.finditer(line)
    ]
    assert found == []
