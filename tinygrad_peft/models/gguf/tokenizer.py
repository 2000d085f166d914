"""The tokenizer in a GGUF file, in the form of a tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models.gguf.header import Scalar, Value, read_gguf_header

Document: TypeAlias = dict[str, object]

_CONTROL, _USER_DEFINED = 3, 4  # token types of llama.cpp
_GPT2_SPLIT: Document = {"type": "ByteLevel", "use_regex": True}
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT: Document = {
    "type": "Split",
    "pattern": {"Regex": _LLAMA3_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}
# tokenizer.ggml.pre -> how text is split before byte-pair encoding
_SPLITS: dict[str, tuple[Document, ...]] = {
    "gpt-2": (_GPT2_SPLIT,),
    "llama-bpe": (_LLAMA3_SPLIT, {"type": "ByteLevel", "use_regex": False}),
    "smollm": ({"type": "Digits", "individual_digits": True}, _GPT2_SPLIT),
}


class GgufTokenizer:
    """The tokenizer of a GGUF file: byte-level BPE, split as `tokenizer.ggml.pre` names it.

    Raises CheckpointError for a file that cannot be read, another kind of tokenizer, or missing
    parts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metadata = read_gguf_header(path).metadata
        self._require_one_of("tokenizer.ggml.model", ["gpt2"])
        self._require_one_of("tokenizer.ggml.pre", sorted(_SPLITS))
        self.pre = str(self._metadata["tokenizer.ggml.pre"])
        self.tokens = [str(token) for token in self._list("tokens")]

    def document(self) -> Document:
        """Build a tokenizer.json with the same token ids."""
        return {
            "version": "1.0",
            "added_tokens": self._added_tokens(),
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [self._with_prefix_space(split) for split in _SPLITS[self.pre]],
            },
            "post_processor": self._template(),
            "decoder": self._with_prefix_space({"type": "ByteLevel"}),
            "model": {
                "type": "BPE",
                "vocab": {token: place for place, token in enumerate(self.tokens)},
                "merges": self._list("merges"),
                "ignore_merges": self.pre == "llama-bpe",
            },
        }

    def settings(self) -> Document:
        """Build a tokenizer_config.json: special tokens and the chat template."""
        named = {
            "bos_token": self._special("bos"),
            "eos_token": self._special("eos"),
            "unk_token": self._special("unknown"),
            "pad_token": self._special("padding"),
            "chat_template": self._metadata.get("tokenizer.chat_template"),
        }
        given = {name: value for name, value in named.items() if value is not None}
        return {"tokenizer_class": "PreTrainedTokenizerFast", **given}

    def _added_tokens(self) -> list[Document]:
        kinds = self._list("token_type")
        if len(kinds) != len(self.tokens):
            raise CheckpointError(
                f"{self.path}: expected one tokenizer.ggml.token_type for each of "
                f"{len(self.tokens)} tokens, got {len(kinds)}"
            )
        return [
            _added_token(place, self.tokens[place], special=kind == _CONTROL)
            for place, kind in enumerate(kinds)
            if kind in (_CONTROL, _USER_DEFINED)
        ]

    def _with_prefix_space(self, step: Document) -> Document:
        if step["type"] != "ByteLevel":
            return step
        space = bool(self._metadata.get("tokenizer.ggml.add_space_prefix", False))
        return {"add_prefix_space": space, "trim_offsets": True, "use_regex": True, **step}

    def _template(self) -> Document | None:
        # llama.cpp adds the first token for Llama 3 unless the file forbids it.
        start = self._wanted_special("bos", default=self.pre == "llama-bpe")
        end = self._wanted_special("eos", default=False)
        if not start and not end:
            return None
        return {
            "type": "TemplateProcessing",
            "single": [*_pieces(start, 0), _sequence("A", 0), *_pieces(end, 0)],
            "pair": [
                *[*_pieces(start, 0), _sequence("A", 0), *_pieces(end, 0)],
                *[*_pieces(start, 1), _sequence("B", 1), *_pieces(end, 1)],
            ],
            "special_tokens": {
                token: {"id": token, "ids": [self.tokens.index(token)], "tokens": [token]}
                for token in (*start, *end)
            },
        }

    def _wanted_special(self, name: str, *, default: bool) -> tuple[str, ...]:
        token = self._special(name)
        wanted = self._metadata.get(f"tokenizer.ggml.add_{name}_token", default)
        return (token,) if wanted and token is not None else ()

    def _special(self, name: str) -> str | None:
        place = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        if not isinstance(place, int) or not 0 <= place < len(self.tokens):
            return None
        return self.tokens[place]

    def _list(self, name: str) -> list[Scalar]:
        value: Value | None = self._metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, list):
            raise CheckpointError(
                f"{self.path}: tokenizer.ggml.{name}: expected a list, got {value!r:.50}"
            )
        return value

    def _require_one_of(self, key: str, known: Sequence[str]) -> None:
        got = self._metadata.get(key)
        if got not in known:
            expected = " or ".join(map(repr, known))
            raise CheckpointError(f"{self.path}: {key}: expected {expected}, got {got!r}")


def _added_token(place: int, token: str, *, special: bool) -> Document:
    exact = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": place, "content": token, "special": special, **exact}


def _pieces(tokens: tuple[str, ...], type_id: int) -> list[Document]:
    return [{"SpecialToken": {"id": token, "type_id": type_id}} for token in tokens]


def _sequence(name: str, type_id: int) -> Document:
    return {"Sequence": {"id": name, "type_id": type_id}}
