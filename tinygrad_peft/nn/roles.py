"""The roles of the positions in one forward pass: virtual, padding, prompt or continuation."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinygrad_peft.arrays import BoolArray, IntArray, Shape

__all__ = ["Roles"]


@dataclass(frozen=True, eq=False)
class Roles:
    """The role of each position of hidden states (B, T): virtual, padding, prompt or continuation.

    Every position has exactly one role. A row's prompt is its first `prompt_lengths` real tokens,
    wherever its padding is; the continuation is all real tokens after them. A pass of a generation
    sees a part of a row: the counts include the tokens that the cache has, and the prompt's length
    those that are still to come.

    Attributes:
        shape: (B, T), the virtual tokens of this pass included.
        virtual_tokens: (B, N), the first N positions: True for a row's own virtual token, False
            for the filler of a row with fewer. None: no virtual tokens in this pass.
        cached: C, the tokens per row that earlier passes have read, padding included.
        mask: (B, C + T - N), True for a real token and False for padding. None: all are real.
        prompt_lengths: (B,), the real tokens in each row's prompt. None: all real tokens so far.
    """

    shape: Shape
    virtual_tokens: BoolArray | None = None
    cached: int = 0
    mask: BoolArray | None = None
    prompt_lengths: IntArray | None = None

    @cached_property
    def virtual(self) -> BoolArray:
        """The virtual tokens: (B, T)."""
        roles = np.zeros(self.shape, bool)
        if self.virtual_tokens is not None:
            roles[:, : self._front] = self.virtual_tokens
        return roles

    @cached_property
    def padding(self) -> BoolArray:
        """Positions without a token, fillers in front of a shorter prompt included: (B, T)."""
        return ~(self.virtual | self._real)

    @cached_property
    def prompt(self) -> BoolArray:
        """The real tokens of the prompt: (B, T)."""
        return self._real & (self._number < self._lengths)

    @cached_property
    def continuation(self) -> BoolArray:
        """The real tokens after the prompt: (B, T)."""
        return self._real & (self._number >= self._lengths)

    def first(self, count: int = 1) -> BoolArray:
        """Mark the first `count` tokens of each row's prompt, where this pass has them: (B, T)."""
        return self.prompt & (self._number < count)

    def last(self, count: int = 1) -> BoolArray:
        """Mark the last `count` tokens of each row's prompt, where this pass has them: (B, T)."""
        return self.prompt & (self._number >= self._lengths - count)

    def of(self, rows: IntArray) -> "Roles":
        """Select rows of the batch."""
        virtual, mask, lengths = self.virtual_tokens, self.mask, self.prompt_lengths
        return Roles(
            (len(rows), self.shape[1]),
            virtual_tokens=None if virtual is None else virtual[rows],
            cached=self.cached,
            mask=None if mask is None else mask[rows],
            prompt_lengths=None if lengths is None else lengths[rows],
        )

    @property
    def _front(self) -> int:
        """N."""
        return 0 if self.virtual_tokens is None else self.virtual_tokens.shape[1]

    @cached_property
    def _real(self) -> BoolArray:
        real = np.ones(self.shape, bool)
        real[:, : self._front] = False
        if self.mask is not None:
            real[:, self._front :] = self.mask[:, self.cached :]
        return real

    @cached_property
    def _number(self) -> IntArray:
        """The number of real tokens before each token in its row, cached ones too: (B, T)."""
        if self.mask is None:
            number = self.cached - self._front + np.arange(self.shape[1])
            return np.broadcast_to(number, self.shape)
        before = np.cumsum(self.mask, axis=1)[:, self.cached :] - 1
        return np.pad(before, ((0, 0), (self._front, 0)))

    @cached_property
    def _lengths(self) -> IntArray:
        """The lengths of the prompts: (B, 1)."""
        if self.prompt_lengths is not None:
            return self.prompt_lengths[:, None]
        if self.mask is not None:
            return np.asarray(self.mask.sum(axis=1, keepdims=True))
        return np.full((self.shape[0], 1), self.cached + self.shape[1] - self._front)
