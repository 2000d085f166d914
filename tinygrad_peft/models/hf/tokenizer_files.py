"""The files of a tokenizer: tokenizer.json, and the settings and special tokens beside it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tinygrad_peft.errors import CheckpointError, told
from tinygrad_peft.files import (
    decode_json_object,
    read_bytes,
    read_optional_object,
    saving,
    settled,
    write_json,
)
from tinygrad_peft.models.hf.tokenizer_checks import has_expressions, tokenizer_problems

__all__ = ["TokenizerFiles", "write_tokenizer"]

_TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_BESIDE = (_MAP, "added_tokens.json", "merges.txt", "vocab.json", "vocab.txt")
_SPECIAL = ("bos_token", "eos_token", "pad_token")
_NAMING_TOKENS = ("config.json", "generation_config.json")  # by id; the last one prevails
_SENTENCE = "sentence_bert_config.json"  # of sentence-transformers

TokenOf = Callable[[int], str | None]  # the token with an id, if there is one


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of a tokenizer's files.

    Attributes:
        path: the tokenizer.json.
        document: its contents, with the lower case that sentence-transformers asks for.
        given: the settings in the files beside it.
        naming: the contents of the files that name special tokens by their ids.
        has_expressions: it matches regular expressions of its own.
        lower_cases: the folder puts texts in lower case before the file's own normaliser.
    """

    path: Path
    document: str
    given: Mapping[str, object]
    naming: Sequence[Mapping[str, object]]
    has_expressions: bool
    lower_cases: bool

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the files in a folder.

        Raises CheckpointError if tokenizer.json is missing, or asks for too much memory or time,
        and for files that are broken.
        """
        path = settled(folder) / _TOKENIZER
        if not path.is_file():
            raise CheckpointError(f"no tokenizer in {folder}: expected a file {_TOKENIZER}")
        text = read_bytes(path)
        document = decode_json_object(text, str(path))
        if problems := tokenizer_problems(document):
            raise CheckpointError(f"{path} is refused:{told(problems)}")
        given = read_optional_object(folder / _MAP) | read_optional_object(folder / _SETTINGS)
        lower_cases = read_optional_object(folder / _SENTENCE).get("do_lower_case") is True
        if lower_cases:
            text = json.dumps(_lowered(document)).encode()
            given["do_lower_case"] = True
        naming = [read_optional_object(folder / name) for name in _NAMING_TOKENS]
        return cls(path, text.decode(), given, naming, has_expressions(document), lower_cases)

    def settings(self, token_of: TokenOf) -> dict[str, object]:
        """Return the contents of a tokenizer_config.json, with all special tokens."""
        # GPT-2's own checkpoint names its special tokens only in config.json.
        named = {
            name: token_of(number)
            for config in self.naming
            for name in _SPECIAL
            for number in [*_ids(config.get(f"{name}_id"), token_of)][:1]
        }
        return named | {k: v for k, v in self.given.items() if v is not None or k not in _SPECIAL}

    def end_ids(self, token_of: TokenOf) -> set[int]:
        """Return the tokens that end a text by the settings of the model and of generation."""
        return {n for config in self.naming for n in _ids(config.get("eos_token_id"), token_of)}


def write_tokenizer(folder: Path, document: str, settings: Mapping[str, object]) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers reads them.

    Files of another tokenizer that transformers would read beside them are removed.
    """
    with saving(folder) as save:
        save.path(_TOKENIZER).write_text(document, "utf-8")
        write_json(save.path(_SETTINGS), settings)
        for name in _BESIDE:
            (save.staged / name).unlink(missing_ok=True)
        save.remove(_BESIDE)


def _ids(given: object, token_of: TokenOf) -> Iterator[int]:
    """Yield the tokens that a setting names: one, or several. Their ids have 32 bits."""
    for number in given if isinstance(given, list) else [given]:
        if type(number) is int and 0 <= number < 2**32 and token_of(number):
            yield number


def _lowered(document: Mapping[str, object]) -> dict[str, object]:
    """Put a Lowercase before the normaliser, as sentence-transformers does with do_lower_case."""
    given = document.get("normalizer")
    inner = given.get("normalizers") if isinstance(given, dict) else None
    parts = inner if isinstance(inner, list) else [given] if given else []
    return {
        **document,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *parts]},
    }
