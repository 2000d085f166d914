"""Plain English, as far as it can be counted; `python tests/english.py` prints the counts."""

from pathlib import Path

import pytest

from tests.english import ROOT, files, findings

in_checkout = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="these tests were copied away from the sources"
)


def phrases_in(tmp_path: Path, name: str, source: str) -> list[str]:
    file = tmp_path / name
    file.write_text(source, "utf-8")
    return [found.phrase for found in findings(file)]


@in_checkout
def test_the_repository_is_in_plain_english() -> None:
    assert [found for path in files() for found in findings(path)] == []


@pytest.mark.parametrize(
    ("source", "phrase"),
    [
        ('def f():\n    """Whether it fits."""', "opening"),
        ('class A:\n    """What a class holds."""', "opening"),
        ('"""How it works."""', "opening"),
        ('raise ValueError(f"{x} is no matrix")', "is no"),
        ('raise ValueError(f"expected a float, and {x} is none")', "is none"),
        ("x = 1  # the layers\ny = 2  # fine\n# a list of\n# which one is taken", "of which"),
        ("def test_such_a_layer_is_refused(): ...", "such"),
        ('"""The shape is that of x."""', "that of"),
        ('"""All but for the last."""', "but for"),
        ('"""The rest is told."""', "is told"),
        ('"""The files that it comes to."""', "comes to"),
        ('"""Let the old module stand there."""', "let stand"),
        ('f"{name} cannot be: {problems}"', "cannot be"),
    ],
)
def test_stilted_phrase_is_found_once(tmp_path: Path, source: str, phrase: str) -> None:
    assert phrases_in(tmp_path, "module.py", source) == [phrase]


@pytest.mark.parametrize(
    "text",
    [
        "Read a header.",
        "Whatever the file says, read it.",
        "There is no cache, there is none here, and x is not y.",
        "It is no longer needed, and takes no more than is no less than one.",
        "A method such as LoRA; no such file, no-such-python; float64 where given as such.",
        "Two matrices, each of which is square.",
        "The file cannot be read.",
        "Let it be when it comes to memory.",
    ],
)
def test_plain_phrase_is_not_counted(tmp_path: Path, text: str) -> None:
    assert phrases_in(tmp_path, "module.py", f'"""{text}"""') == []


def test_code_in_documents_is_not_prose(tmp_path: Path) -> None:
    page = "It is no prose.\n\n```python\nx = 1  # is no prose\n```\n\nNor is this: but for it.\n"
    assert phrases_in(tmp_path, "page.md", page) == ["is no", "but for"]


def test_finding_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('x = 1\n\n# fine\n\ny = "is no matrix"\n', "utf-8")
    assert [found.line for found in findings(file)] == [5]
