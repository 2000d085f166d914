"""Two small public data sets, parsed from their packages' files to rows of text."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Row: TypeAlias = dict[str, str]

LEAST_RATING = 0.5  # on a scale of -4 to 4; below it a review is neither praise nor complaint
ENTRY_LIMIT = 320  # characters; entries are shorter
_TITLE = "The Devil's Dictionary"  # asks for satire

_WORD = r"[A-Z][A-Z'-]*"
_ENTRY = re.compile(
    # ABASEMENT, / APRIL FOOL, / BABE or BABY, / CONFIDANT, CONFIDANTE, / TZETZE (or TSETSE) FLY,
    rf"(?P<headword>{_WORD}(?:,? (?:or )?{_WORD}| \(or {_WORD}\))*),?\s"
    r"(?P<part_of_speech>(?:[a-z]{1,4}\.)+)\s+(?P<definition>\S.*)",
    re.DOTALL,
)
_CROSS_REFERENCE = re.compile(r"\{(.*?)\}")


def movie_reviews(raw: bytes) -> list[Row]:
    """Parse snippets of reviews, labelled "positive" or "negative", each text once, by md5.

    `raw` has a line per snippet: number, mean rating and text, separated by tabs.
    """
    labels: dict[str, str] = {}
    for line in raw.decode("utf-8").split("\r\n"):
        _, rating, text = line.split("\t")
        if abs(float(rating)) >= LEAST_RATING:
            labels.setdefault(text, "positive" if float(rating) > 0 else "negative")
    return [{"text": text, "label": labels[text]} for text in _by_md5(labels)]


def devils_dictionary(raw: bytes) -> list[Row]:
    """Parse prompts of the title and "WORD, n.", completed by the definition, each once, by md5.

    `raw` is the text of the dictionary. An entry keeps its prose, not the verse after it. Entries
    that only introduce a verse, or reach ENTRY_LIMIT characters, are left out.
    """
    entries: dict[str, Row] = {}
    for paragraph in re.split(r"\n[ \t]*\n", raw.decode("utf-8")):
        match = _ENTRY.fullmatch(paragraph.rstrip())
        if match:
            entry = f"{match['headword']}, {match['part_of_speech']}"
            completion = " " + _plain(match["definition"])
            row = {"prompt": f"{_TITLE}\n\n{entry}", "completion": completion}
            entries[entry + completion] = row
    short = [text for text in entries if len(text) < ENTRY_LIMIT and not _introduces_verse(text)]
    return [entries[text] for text in _by_md5(short)]


def _plain(definition: str) -> str:
    return _CROSS_REFERENCE.sub(r"\1", " ".join(definition.split()))


def _introduces_verse(text: str) -> bool:
    return text.endswith((":", "--"))


def _by_md5(texts: Iterable[str]) -> list[str]:
    """Sort texts in an order that depends on nothing else."""
    return sorted(
        texts, key=lambda text: hashlib.md5(text.encode(), usedforsecurity=False).digest()
    )


def jsonl(rows: Sequence[Row]) -> bytes:
    """Encode rows as JSON lines in UTF-8."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def split(rows: Sequence[Row], train: int, test: int) -> dict[str, bytes]:
    """Make the files of a data set: its first `train` rows, its last `test` rows, and all."""
    parts = {"train": rows[:train], "test": rows[-test:], "all": rows}
    return {f"{name}.jsonl": jsonl(part) for name, part in parts.items()}
