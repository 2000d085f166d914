"""Count stilted English: `python tests/english.py [path ...]`.

Reads docstrings, comments, strings, names of tests, and the prose of the documents. Without a path,
prints a count per package; with paths, each place.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

# A docstring opens with a verb, a noun or a formula.
_OPENING = re.compile(r"(How|That|What|When|Where|Whether|Which|Who|Whose|Why)\b")

_PHRASES: Mapping[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "is no": r"(?<!\bthere )\b(?:is|are|was|were) no\b(?! (?:longer|more|less|fewer)\b)",
        "is none": r"(?<!\bthere )\b(?:is|are|was|were) none\b",
        "of which": r"(?<!\beach )(?<!\ball )(?<!\bboth )(?<!\bnone )\bof (?:which|whom)\b",
        "such": r"(?<!\bno[ -])(?<!\bas )\bsuch\b(?! as\b)",
        "that of": r"\bthat of\b",
        "but for": r"\bbut for\b",
        "is told": r"\b(?:is|are|was|were|be|been) told\b",
        "comes to": r"(?<!\bwhen )\b(?:it|they|this|that) comes? to\b",
        "let stand": r"\blets? (?:[\w`]+ ){1,4}stand\b",
        "cannot be": r"\b(?:cannot|can not) be(?=[.,:;]|$)",
    }.items()
}
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


class Finding(NamedTuple):
    """A stilted phrase, and where it stands."""

    path: Path
    line: int
    phrase: str
    text: str


def findings(path: Path) -> list[Finding]:
    """Find stilted English in a Python or Markdown file."""
    source = path.read_text("utf-8")
    texts = _prose(source) if path.suffix == ".md" else _python_texts(source)
    found = [
        Finding(path, line, phrase, " ".join(text.split()))
        for line, text in texts
        for phrase, pattern in _PHRASES.items()
        for _ in pattern.finditer(" ".join(text.split()))
    ]
    if path.suffix == ".md":
        return found
    openings = [
        Finding(path, line, "opening", text.partition("\n")[0])
        for line, text in _docstrings(ast.parse(source))
        if _OPENING.match(text)
    ]
    return openings + found


def files() -> list[Path]:
    """List the files whose English counts: sources, tests and documents."""
    own = {Path(__file__), Path(__file__).with_name("test_english.py")}  # these quote it
    python = [
        p
        for top in ("tinygrad_peft", "plugins", "tests", "docs")
        for p in ROOT.glob(f"{top}/**/*.py")
    ]
    prose = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted({*python, *prose} - own)


def package_of(path: Path) -> str:
    """Name the package that a file counts towards: tinygrad_peft/nn, plugins/..., docs."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] == "docs" else "/".join(parts[:2])


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def _python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings and other texts, comments a block at a time, and names of tests."""
    tree = ast.parse(source)
    inside = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
            yield node.lineno, "".join(map(str, pieces))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in inside:
                yield node.lineno, node.value
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
    yield from _comments(source)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    start, last, lines = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if lines and line != last + 1:
            yield start, " ".join(lines)
            lines = []
        start = start if lines else line
        lines.append(token.string.lstrip("# "))
        last = line
    if lines:
        yield start, " ".join(lines)


def _prose(source: str) -> Iterator[tuple[int, str]]:
    """Paragraphs outside of code."""
    blanked = _FENCE.sub(lambda code: "\n" * code[0].count("\n"), source)
    for match in re.finditer(r"(?:.+\n?)+", blanked):
        yield blanked.count("\n", 0, match.start()) + 1, match[0]


def main(paths: list[str]) -> None:
    """Print each place in `paths`, or a count per package."""
    if paths:
        chosen = [Path(path).resolve() for path in paths]
        for path in files():
            if any(path.is_relative_to(place) for place in chosen):
                for found in findings(path):
                    where = f"{found.path.relative_to(ROOT)}:{found.line}"
                    print(f"{where}: {found.phrase}: {found.text[:200]}")
        return
    counts: dict[str, Counter[str]] = {}
    for path in files():
        counts.setdefault(package_of(path), Counter()).update(f.phrase for f in findings(path))
    columns = ["opening", *_PHRASES]
    print(f"{'':34}{'total':>6}", *(f"{name:>9}" for name in columns))
    for package, count in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{package:34}{count.total():>6}", *(f"{count[name] or '':>9}" for name in columns))


if __name__ == "__main__":
    main(sys.argv[1:])
