"""Each committed picture is the one that its figures give now, and can be read by everybody."""

import re
from xml.etree import ElementTree as ET

import pytest

from docs.pictures import FOLDER, PICTURES

DOCS = FOLDER.parent
SVG = "{http://www.w3.org/2000/svg}"
BLACK_AND_WHITE = 21.0
LETTER = 0.55  # the mean width of a letter, of the widest of the usual fonts, in its size
BEFORE = {"start": 0.0, "middle": 0.5, "end": 1.0}  # the share of a text that is left of its x


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_matches_its_computed_figures(name: str) -> None:
    committed = (FOLDER / f"{name}.svg").read_text("utf-8")
    assert PICTURES[name]().svg() == committed, "the picture is stale: run `make pictures`"


def test_no_picture_is_left_that_nothing_draws() -> None:
    assert {path.stem for path in FOLDER.glob("*.svg")} == set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_on_a_page_with_its_description(name: str) -> None:
    pages = "".join(path.read_text("utf-8") for path in DOCS.rglob("*.md"))
    assert re.search(rf"!\[[^\]]{{20,}}\]\((?:\.\./)?pictures/{name}\.svg\)", pages, re.DOTALL)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_describes_itself_in_words(name: str) -> None:
    root = ET.fromstring(PICTURES[name]().svg())  # noqa: S314 - written a moment ago
    named = root.get("aria-labelledby", "").split()
    words = {e.get("id"): e.text or "" for tag in ("title", "desc") for e in root.iter(SVG + tag)}
    assert list(words) == named
    assert all(len(text) > 15 for text in words.values())


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_stays_within_its_edges_and_no_text_is_small(name: str) -> None:
    picture = PICTURES[name]()
    root = ET.fromstring(picture.svg())  # noqa: S314 - written a moment ago
    for shape in root.iter(SVG + "path"):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", shape.get("d", ""))]
        assert all(0 <= x <= picture.width for x in numbers[::2])
        assert all(0 <= y <= picture.height for y in numbers[1::2])
    for text in root.iter(SVG + "text"):
        size = re.search(r"font-size:(\d+)px", text.get("style", "font-size:14px"))
        assert size is not None
        assert int(size[1]) >= 13
        assert 0 < float(text.get("y", "")) < picture.height
        width = LETTER * int(size[1]) * len("".join(text.itertext()))
        left = float(text.get("x", "")) - BEFORE[text.get("text-anchor", "start")] * width
        assert 0 < left < left + width < picture.width


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_the_paper(name: str, theme: str) -> None:
    light, dark = PICTURES[name]().svg().split("@media (prefers-color-scheme:dark)")
    rules = light if theme == "light" else dark.partition("</style>")[0]
    fills = dict(re.findall(r"^\.([\w-]+)\{fill:(#\w{6})\}", rules, re.MULTILINE))
    paper = fills.pop("paper")
    # Web Content Accessibility Guidelines 2.2, 1.4.3: 4.5 to 1 for text of this size
    assert {kind: c for kind, fill in fills.items() if (c := contrast(fill, paper)) < 4.5} == {}


def test_contrast_is_measured_as_the_guidelines_say() -> None:
    assert contrast("#000000", "#ffffff") == BLACK_AND_WHITE


def contrast(one: str, other: str) -> float:
    """(L₁ + 0.05) / (L₂ + 0.05), the lighter above."""
    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
