"""The documents say what the code says."""

import ast
import re
from pathlib import Path

import pytest

from tinygrad_peft.peft import hookspecs
from tinygrad_peft.testing import MethodConformance
from tinygrad_peft.testing.settings import MethodSettings
from tinygrad_peft.train import hookspecs as train_hookspecs

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted(ROOT.glob("tinygrad_peft/**/*.py")), *sorted(ROOT.glob("plugins/**/*.py"))]

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="these tests were copied away from the documents"
)


def test_every_hook_has_a_heading_and_every_heading_of_a_hook_is_one() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    headings = re.findall(r"^### (\w+)$", text, flags=re.MULTILINE)
    assert sorted(headings) == sorted([*hookspecs.__all__, *train_hookspecs.__all__])


def test_the_files_on_the_plugins_page_are_those_that_are_installed_and_run() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    shown = re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```\n", text, flags=re.DOTALL)
    assert len(shown) == 3
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
        and ast.unparse(node.body[0]) != "..."  # a protocol tells what it asks for
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


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_into_pages_lead_to_headings(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text("utf-8"))
    lost = [
        f"{page}#{anchor}"
        for page, anchor in links
        if anchor not in anchors(path.parent / page if page else path)
    ]
    assert lost == []


def anchors(page: Path) -> set[str]:
    """The headings as GitHub and MkDocs name them in links."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def glossary() -> dict[str, str]:
    """The terms and what is said of them."""
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return dict(part.split("\n", 1) for part in parts[1:])


def test_the_glossary_is_in_order_and_each_entry_is_short_and_links_to_a_page() -> None:
    terms = glossary()
    assert list(terms) == sorted(terms, key=str.lower)
    assert [term for term, text in terms.items() if "](" not in text] == []
    assert [term for term, text in terms.items() if len(text.split()) > 60] == []


def test_every_term_of_the_glossary_is_used_on_the_page_that_it_links_to_or_in_the_code() -> None:
    code = "\n".join(path.read_text("utf-8") for path in SOURCES).lower()
    unused = []
    for term, text in glossary().items():
        pages = [ROOT / "docs" / link for link in re.findall(r"\]\(([^)#:]+)", text)]
        linked = "".join(page.read_text("utf-8") for page in pages)
        if term.lower() not in linked.lower() + code:
            unused.append(term)
    assert unused == []


def test_other_pages_lead_to_the_glossary_and_it_has_the_terms_of_the_design() -> None:
    assert "(glossary.md)" in (ROOT / "docs" / "index.md").read_text("utf-8")
    asked = {"Pullback", "Seam", "Site", "Host", "Step", "Family", "Tied", "Absmax", "Density"}
    assert asked <= set(glossary())
