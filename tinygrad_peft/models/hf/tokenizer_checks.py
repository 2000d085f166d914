"""Checks of a tokenizer.json before the tokenizers package reads it.

The package does what a file asks for, and two kilobytes can ask for more memory than any machine
has: each of twenty `Replace` steps writes a letter twice. An allocation that fails ends the
process. Here the greatest growth of a text is multiplied out beforehand, step by step: a text of n
bytes becomes at most factor · n + added.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

__all__ = ["has_expressions", "tokenizer_problems"]


@dataclass(frozen=True)
class _Growth:
    """The greatest growth of a text in bytes, or of a list of ids: n to factor · n + added."""

    factor: float = 1.0
    added: float = 0.0

    def then(self, step: "_Growth") -> "_Growth":
        return _Growth(self.factor * step.factor, self.added * step.factor + step.added)


# The limits. The largest in use is ALBERT's normaliser: 11 (NFKD) · 1.5 · 33 (its table) · 2.
_LIMITS: Mapping[str, _Growth] = {
    "normalizer": _Growth(2_000, 20_000),
    "pre_tokenizer": _Growth(20, 1_000),
    "post_processor": _Growth(4, 1_000),
    "decoder": _Growth(200, 10_000),
}
# The factors of the other steps: U+FDFA is 3 bytes, and 33 in NFKD; U+0130 grows by half.
_FACTORS: Mapping[str, float] = {
    "NFC": 3,
    "NFD": 3,
    "NFKC": 11,
    "NFKD": 11,
    "Lowercase": 1.5,
    "BertNormalizer": 7.5,
    "ByteLevel": 2,
    "Metaspace": 4,
    **dict.fromkeys(("Sequence", "Strip", "StripAccents", "Nmt"), 1),
    **dict.fromkeys(("BertPreTokenizer", "CharDelimiterSplit", "Digits", "FixedLength"), 1),
    **dict.fromkeys(("Punctuation", "Split", "UnicodeScripts", "Whitespace"), 1),
    **dict.fromkeys(("WhitespaceSplit", "BertProcessing", "RobertaProcessing"), 1),
    **dict.fromkeys(("BPEDecoder", "ByteFallback", "CTC", "Fuse", "WordPiece"), 1),
}
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")  # of the steps in a Sequence
_LONGEST_WORD = 1_000  # characters, since WordPiece takes the square of it; BERT's limit is 100
_LONGEST_AFFIX = 100  # characters


def tokenizer_problems(document: Mapping[str, object]) -> list[str]:
    """List what asks for more memory or time than any text needs."""
    problems = []
    for section, limit in _LIMITS.items():
        growth = _Growth()
        for step in _steps(document.get(section)):
            problems += [f"{section}: {problem}" for problem in _Table.of(step).problems]
            try:
                growth = growth.then(_growth(step))
            except msgspec.ValidationError as error:
                problems.append(f"{section}: {error}")
        if growth.factor > limit.factor or growth.added > limit.added:
            problems.append(
                f"{section}: expected a text to grow at most {limit.factor:,.0f} times and by "
                f"{limit.added:,.0f}, got {growth.factor:,.0f} times and {growth.added:,.0f}"
            )
    model = document.get("model")
    return problems + (_model_problems(model) if isinstance(model, dict) else [])


def has_expressions(document: Mapping[str, object]) -> bool:
    """Return True if any step matches a regular expression of the file's own."""
    steps = (step for section in _LIMITS for step in _steps(document.get(section)))
    return any("Regex" in pattern for pattern in map(_pattern, steps))


def _steps(section: object) -> Iterator[Mapping[str, object]]:
    """Yield the steps of a section in their order, however deep their sequences are nested."""
    waiting = [section]
    while waiting:
        step = waiting.pop()
        if not isinstance(step, dict):
            continue
        lists = [steps for name in _LISTS if isinstance(steps := step.get(name), list)]
        waiting += [inner for steps in lists for inner in reversed(steps)]
        yield step


def _growth(step: Mapping[str, object]) -> _Growth:
    """Return the growth of one step; the package goes by its settings where `type` says nothing."""
    if "pattern" in step and "content" in step:
        length, content = _size(_pattern(step).get("String")), _size(step["content"])
        # An expression, or an empty text, may match between any two characters.
        return _Growth(max(1.0, content / length) if length else 1.0 + content)
    if "prepend" in step:
        return _Growth(added=_size(step["prepend"]))
    if "precompiled_charsmap" in step:
        return _Growth(max(1, _Table.of(step).longest))
    if "single" in step:
        return _template_growth(step)
    return _Growth(_FACTORS.get(str(step.get("type")), max(_FACTORS.values())))


class _Piece(msgspec.Struct):
    id: str


class _Special(msgspec.Struct):
    ids: list[int]


class _Template(msgspec.Struct):
    single: list[dict[Literal["Sequence", "SpecialToken"], _Piece]]
    special_tokens: dict[str, _Special]


def _template_growth(step: Mapping[str, object]) -> _Growth:
    """Count the pieces of one text's template: sequences, and the ids of special tokens."""
    template = msgspec.convert(step, _Template)
    factor = sum("Sequence" in piece for piece in template.single)
    names = [piece["SpecialToken"].id for piece in template.single if "SpecialToken" in piece]
    ids = {name: len(token.ids) for name, token in template.special_tokens.items()}
    return _Growth(max(1, factor), sum(ids.get(name, 1) for name in names))


@dataclass(frozen=True)
class _Table:
    """SentencePiece's table of replacements: its length, a trie, and texts that end with a zero."""

    data: bytes
    problems: Sequence[str]

    @classmethod
    def of(cls, step: Mapping[str, object]) -> "_Table":
        text = step.get("precompiled_charsmap")
        try:
            data = base64.b64decode(text, validate=True) if isinstance(text, str) else bytes(4)
        except ValueError as error:
            return cls(b"", [f"precompiled_charsmap: {error}"])
        size = int.from_bytes(data[:4], "little")
        wrong = len(data) < 4 or size > len(data) - 4
        # The package would allocate the length, and end the process if memory is short.
        claim = f"precompiled_charsmap claims {size} bytes, got {len(data)}"
        return cls(data[4 + size :], [claim] if wrong else [])

    @property
    def longest(self) -> int:
        """The length of the longest replacement, in bytes."""
        return max(map(len, self.data.split(b"\0")))


def _model_problems(model: Mapping[str, object]) -> list[str]:
    """List settings of a model that make each lookup slow."""
    word = model.get("max_input_chars_per_word")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return [
        *(
            [f"max_input_chars_per_word: expected at most {_LONGEST_WORD:,}, got {word:,}"]
            if isinstance(word, int) and word > _LONGEST_WORD
            else []
        ),
        *(
            f"{name}: expected at most {_LONGEST_AFFIX} bytes, got {_size(model.get(name)):,}"
            for name in affixes
            if _size(model.get(name)) > _LONGEST_AFFIX
        ),
    ]


def _pattern(step: Mapping[str, object]) -> Mapping[str, object]:
    pattern = step.get("pattern")
    return pattern if isinstance(pattern, dict) else {}


def _size(text: object) -> int:
    return len(text.encode(errors="surrogatepass")) if isinstance(text, str) else 0
