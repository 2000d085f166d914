"""Convert text to token ids and back, by the tokenizers package (the `text` extra)."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tinygrad_peft.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    shortened,
)
from tinygrad_peft.models.gguf.tokenizer import GgufTokenizer
from tinygrad_peft.models.hf.folder import encoder_folder
from tinygrad_peft.models.hf.time_limit import within_seconds
from tinygrad_peft.models.hf.tokenized import TokenizedText
from tinygrad_peft.models.hf.tokenizer_files import TokenizerFiles, write_tokenizer

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")

SECONDS, SLOWEST = 3.0, 20_000.0  # to begin with, and characters per second: a tenth of the usual


class Tokenizer:
    """A tokenizer in Hugging Face's fast format.

    Pads and truncates only when asked to, whatever its file says: a checkpoint's file often keeps
    the settings of its last user.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        settings: Mapping[str, object] | None = None,
        *,
        end_ids: Iterable[int] = (),
        limited: bool = False,
    ) -> None:
        """Wrap `backend`; `settings` is a tokenizer_config.json, special tokens included.

        `end_ids` are tokens that end a text beside the end-of-sequence token. `limited`: refuse to
        work for ever, since the file holds regular expressions of its own.
        """
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._settings = dict(settings or {})
        self._end_ids = frozenset(end_ids)
        self._limited = limited
        self.lower_cases = False  # before the file's own normaliser

    @classmethod
    def from_directory(cls, path: Path) -> "Tokenizer":
        """Read tokenizer.json, and the special tokens in the files beside it.

        Raises CheckpointError if it is missing or broken.
        """
        files = TokenizerFiles.read(path)
        backend = _backend(files.document, files.path)
        tokenizer = cls(
            backend,
            files.settings(backend.id_to_token),
            end_ids=files.end_ids(backend.id_to_token),
            limited=files.has_expressions,
        )
        tokenizer.lower_cases = files.lower_cases
        return tokenizer

    @classmethod
    def from_gguf(cls, path: Path) -> "Tokenizer":
        """Rebuild the byte-level BPE tokenizer inside a GGUF file.

        Raises CheckpointError if the file cannot be read or holds another kind of tokenizer.
        """
        source = GgufTokenizer(path)
        return cls(_backend(json.dumps(source.document()), path), source.settings())

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_length: int | None = None
    ) -> list[int]:
        """Encode `text` to at most `max_length` ids; truncation keeps a final [SEP].

        Raises DataError for text that is not valid Unicode, ConfigError for a `max_length` that
        the special tokens alone exceed, and CheckpointError if use shows that the tokenizer's file
        is broken.
        """
        [ids] = self.encode_batch(
            [text], add_special_tokens=add_special_tokens, max_length=max_length
        )
        return ids

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
    ) -> list[list[int]]:
        """Encode many texts without padding, each as `encode` does."""
        self._require_room(max_length, add_special_tokens=add_special_tokens)
        _require_unicode(texts)
        encodings = self._use(
            lambda: self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens),
            sum(map(len, texts)),
        )
        return [_truncated(encoding, max_length) for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids to text, skipping ids beyond the vocabulary. Raises DataError below 0."""
        numbers = [int(number) for number in ids]
        if min(numbers, default=0) < 0:
            raise DataError(f"token ids: expected 0 or more, got {min(numbers)}")
        [text] = self._use(
            lambda: self._backend.decode_batch([numbers], skip_special_tokens=skip_special_tokens),
            len(numbers),
        )
        return text

    def tokenize(self, text: str) -> TokenizedText:
        """Encode `text` with its special tokens, and note the place of each token in it.

        Raises DataError for text that is not valid Unicode, and CheckpointError if use shows that
        the tokenizer's file is broken.
        """
        _require_unicode([text])
        [encoding] = self._use(lambda: self._backend.encode_batch([text]), len(text))
        return TokenizedText.of(encoding)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size()

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token, if there is one."""
        return self._special_id("pad_token")

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text, if there is one."""
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id of the token that ends a text, if there is one."""
        return self._special_id("eos_token")

    @property
    def end_ids(self) -> frozenset[int]:
        """All tokens that end a text: that token, and those in the settings of generation."""
        return self._end_ids if self.eos_id is None else self._end_ids | {self.eos_id}

    @property
    def model_max_length(self) -> int | None:
        """The most tokens of a text, if tokenizer_config.json has a limit."""
        length = self._settings.get("model_max_length")
        # transformers writes 10³⁰ for none.
        return length if isinstance(length, int) and 0 < length < 10**9 else None

    @property
    def size(self) -> int:
        """The number of ids, up to the largest: the rows that an embedding needs."""
        return max(self.vocabulary.values(), default=-1) + 1

    @property
    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens, added ones included."""
        return self._backend.get_vocab()

    @property
    def document(self) -> str:
        """The contents of its tokenizer.json."""
        return self._backend.to_str(pretty=False)

    @property
    def settings(self) -> dict[str, object]:
        """The contents of its tokenizer_config.json."""
        return dict(self._settings)

    def completed(self, base: "Tokenizer") -> "Tokenizer":
        """Return the tokenizer with the settings of `base` where it has none of its own."""
        names = {
            token: self._backend.token_to_id(base.decode_token(token)) for token in base.end_ids
        }
        ends = {token for token, own in names.items() if token == own}
        return Tokenizer(self._backend, base.settings | self._settings, end_ids=self.end_ids | ends)

    def decode_token(self, token: int) -> str:
        """Return the text of a token as the vocabulary has it; "" for an unknown id."""
        return self._backend.id_to_token(token) or ""

    def differences(self, other: "Tokenizer") -> list[str]:
        """List the differences from another tokenizer: of the vocabulary, else of the rules."""
        own, theirs = self.vocabulary, other.vocabulary
        moved = [token for token in own.keys() & theirs.keys() if own[token] != theirs[token]]
        found = {
            "more": sorted(own.keys() - theirs.keys(), key=own.__getitem__),
            "fewer": sorted(theirs.keys() - own.keys(), key=theirs.__getitem__),
            "with other ids": sorted(moved, key=own.__getitem__),
        }
        told = [f"{len(t)} {how} ({_shown(t)})" for how, t in found.items() if t]
        if told or self.document == other.document:
            return told
        return ["the same tokens, and other rules for them"]

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as transformers reads them.

        Files of another tokenizer that transformers would read beside them are removed.
        """
        write_tokenizer(directory, self.document, self._settings)

    def _use(self, work: Callable[[], T], size: int) -> T:
        """Return `work()`, which handles `size` characters or ids, within a generous time."""
        with _library_errors("the tokenizer cannot be used"):
            if self._limited:
                return within_seconds(SECONDS + size / SLOWEST, work)
            return work()

    def _special_id(self, name: str) -> int | None:
        token = self._settings.get(name)
        # Older files write a whole AddedToken where newer ones write its text.
        content = token.get("content") if isinstance(token, dict) else token
        return self._backend.token_to_id(content) if isinstance(content, str) else None

    def _require_room(self, max_length: int | None, *, add_special_tokens: bool) -> None:
        special = self._backend.num_special_tokens_to_add(is_pair=False)
        least = max(special if add_special_tokens else 0, 1)
        if max_length is not None and max_length < least:
            raise ConfigError(f"max_length: expected at least {least}, got {max_length}")


def _shown(tokens: Sequence[str]) -> str:
    """Show the first of some tokens."""
    most = 5
    more = [f"and {len(tokens) - most} others"] if len(tokens) > most else []
    return ", ".join([*(shortened(repr(token), 40) for token in tokens[:most]), *more])


def load_tokenizer(model_path: Path) -> Tokenizer:
    """Load a checkpoint's tokenizer, from a folder with tokenizer.json or a .gguf file.

    Raises CheckpointError if there is none.
    """
    if model_path.is_dir():
        return Tokenizer.from_directory(encoder_folder(model_path))
    if not model_path.exists():
        raise CheckpointError(f"no such file or folder: {model_path}")
    if model_path.suffix.lower() == ".gguf":
        return Tokenizer.from_gguf(model_path)
    raise CheckpointError(f"no tokenizer in {model_path}: expected a folder or a .gguf file")


def _backend(document: str, source: Path) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError(
            "tokenizers is not installed: pip install 'tinygrad-peft[text]'"
        ) from None
    with _library_errors(f"the tokenizer in {source} cannot be used"):
        return tokenizers.Tokenizer.from_str(document)


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Raise CheckpointError if the tokenizers package fails or panics."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of Rust; not an Exception in Python
        if not panic and not isinstance(error, Exception):
            raise
        raise CheckpointError(f"{what}: {shortened(str(error))}") from error


def _truncated(encoding: "tokenizers.Encoding", max_length: int | None) -> list[int]:
    ids = encoding.ids
    if max_length is None or len(ids) <= max_length:
        return ids
    trailing = encoding.special_tokens_mask[::-1].index(0)
    return ids[: max_length - trailing] + ids[len(ids) - trailing :]


def _require_unicode(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text is not valid Unicode: character {error.start} of {text!r:.80}"
            ) from None
