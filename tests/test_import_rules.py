"""What import-linter cannot say: which names may be imported, and not only from which module."""

import ast
import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

PLUGINS = sorted({point.module.partition(".")[0] for point in entry_points(group="tinygrad_peft")})
REFERENCE = "tinygrad_peft.reference"


def files_of(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) for each `from module import name`, (module, None) for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def is_public(module: str, name: str | None) -> bool:
    if any(part.startswith("_") for part in module.split(".")):
        return False
    if name is None:
        return True
    names = getattr(importlib.import_module(module), "__all__", None)
    if names is not None and name in names:
        return True
    return not name.startswith("_") and (names is None or is_module(f"{module}.{name}"))


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


def test_no_module_of_the_core_imports_the_package_that_gathers_them() -> None:
    # `from tinygrad_peft import Tensor` inside the core would be a cycle through __init__.py.
    upward = [
        f"{path.name}: from tinygrad_peft import {name}"
        for path in files_of("tinygrad_peft")
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
