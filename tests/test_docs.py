"""The documents say what the code says."""

import ast
import re
from pathlib import Path

import pytest

from tinygrad_peft.peft import hookspecs
from tinygrad_peft.testing import MethodConformance
from tinygrad_peft.testing.settings import MethodSettings

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted(ROOT.glob("tinygrad_peft/**/*.py")), *sorted(ROOT.glob("plugins/**/*.py"))]

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="these tests were copied away from the documents"
)


def test_every_hook_has_a_heading_and_every_heading_of_a_hook_is_one() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    headings = re.findall(r"^### (\w+)$", text, flags=re.MULTILINE)
    assert sorted(headings) == hookspecs.__all__


def test_the_files_on_the_plugins_page_are_those_that_are_installed_and_run() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    shown = re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```\n", text, flags=re.DOTALL)
    assert len(shown) == 2
    assert dict(shown) == {path: (ROOT / path).read_text("utf-8") for path, _ in shown}


def test_the_plugins_page_has_every_promise_and_every_setting_of_the_suite() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    page = text.partition("## Whether it is right")[2].partition("## What a method rewrites")[0]
    listed = re.findall(r"^\| `(\w+)(?:\(\))?` \|", page, flags=re.MULTILINE)
    promises = [
        name.removeprefix("test_") for name in dir(MethodConformance) if name.startswith("test_")
    ]
    settings = [*MethodSettings.__annotations__, "plugins"]
    assert sorted(listed) == sorted([*promises, *settings])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_and_methods_have_docstrings(path: Path) -> None:
    undocumented = [
        f"{node.name} (line {node.lineno})"
        for owner in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(owner, ast.Module | ast.ClassDef) and not owner_is_private(owner)
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and ast.unparse(node.body[0]) != "..."  # a protocol states its contract
        and not any(is_overload(d) for d in node.decorator_list)
    ]
    assert undocumented == []


def owner_is_private(owner: ast.Module | ast.ClassDef) -> bool:
    return isinstance(owner, ast.ClassDef) and owner.name.startswith("_")


def is_overload(decorator: ast.expr) -> bool:
    names = {n.id for n in ast.walk(decorator) if isinstance(n, ast.Name)}
    attributes = {n.attr for n in ast.walk(decorator) if isinstance(n, ast.Attribute)}
    return bool({"overload", "setter"} & (names | attributes))


def test_every_page_can_be_reached_from_the_first() -> None:
    reached, left = set(), [ROOT / "docs" / "index.md"]
    while left:
        page = left.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            links = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
            left += [(page.parent / link).resolve() for link in links]
    assert set(PAGES[1:]) <= reached
