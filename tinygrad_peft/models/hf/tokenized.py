"""A tokenized text that knows its special tokens, and which characters each token stands for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from tinygrad_peft.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["TokenizedText"]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The T tokens of a text, those that the tokenizer put around it included.

    ids: (T,)
    ends: (T,) the place in the text behind the last character of each token; 0 for tokens that the
        text does not have.
    before, after: the numbers of tokens that were put before and after the text.
    """

    ids: Sequence[int]
    ends: Sequence[int]
    before: int = 0
    after: int = 0

    @classmethod
    def of(cls, encoding: "tokenizers.Encoding") -> Self:
        """Read the result of the tokenizers package."""
        added = encoding.special_tokens_mask
        count = len(added)
        before = added.index(0) if 0 in added else count
        after = added[::-1].index(0) if 0 in added else 0
        return cls(encoding.ids, [end for _, end in encoding.offsets], before, after)

    def opened(self) -> Self:
        """Leave out the tokens that were put after the text, so that it can go on."""
        return self._part(0, len(self.ids) - self.after, after=0)

    def undoubled(self) -> Self:
        """Leave out the tokens put around a text that already has them: one BOS, one EOS.

        A text from a chat template often begins with the token that the tokenizer puts before it.
        """
        start, end = self.before, len(self.ids) - self.after
        own = self.ids[start:end]
        doubled = self.before > 0 and own[: self.before] == self.ids[:start]
        closed = own[self.before if doubled else 0 :]
        ended = self.after > 0 and closed[-self.after :] == self.ids[end:]
        return self._part(start if doubled else 0, end if ended else len(self.ids), self.after)

    def shortened(self, length: int | None) -> tuple[int, ...]:
        """Return the ids, cut to `length` before the tokens that were put after the text.

        Raises ConfigError for a length that the special tokens alone exceed.
        """
        ids, least = tuple(self.ids), max(self.before + self.after, 1)
        if length is None or len(ids) <= length:
            return ids
        if length < least:
            raise ConfigError(f"max_length: expected at least {least}, got {length}")
        return ids[: length - self.after] + ids[len(ids) - self.after :]

    def first_after(self, place: int) -> int:
        """Return the index of the first token with a character at `place` or later."""
        indices = range(self.before, len(self.ids))
        return next((i for i in indices if self.ends[i] > place), len(self.ids) - self.after)

    def _part(self, start: int, end: int, after: int) -> Self:
        return replace(self, ids=self.ids[start:end], ends=self.ends[start:end], after=after)
