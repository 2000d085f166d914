"""Virtual tokens, and virtual keys and values, in front of the tokens.

A prompt is vectors in front of the embedded tokens, and goes through all layers as they do (Lester
et al. 2021, arXiv 2104.08691). A prefix is keys and values in front of each attention layer's own
(Li and Liang 2021, arXiv 2101.00190). Both take positions: those of the prefix come first, then the
prompt's, then the tokens'. Rows may have different ones: the shorter are filled up on the left, and
no query sees the filler.

Axes: B rows, N the prompt's length, P the prefix's, K key/value heads, D a vector's or a head's
size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import ShapeError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.module import Module
from tinygrad_peft.ops.loss import IGNORE_INDEX
from tinygrad_peft.tensor import Tensor

__all__ = ["Front", "NoPrefix", "NoPrompt", "VirtualKeys", "VirtualTokens"]


@dataclass(frozen=True, slots=True)
class VirtualTokens:
    """A prompt: vectors (N, D) for every row, or (B, N, D).

    `present` (B, N) is True for a row's own vectors, which come last, and False for filler; None:
    all are its own.
    """

    states: Tensor
    present: BoolArray | None = None

    @property
    def length(self) -> int:
        """N."""
        return self.states.shape[-2]

    def behind(self, front: Tensor) -> "VirtualTokens":
        """Prepend vectors (F, D) to every row: a prompt of length F + N."""
        place = _Behind(front.shape[0], self.present)
        return VirtualTokens(place.put(front, self.states), place.present)


@dataclass(frozen=True, slots=True)
class VirtualKeys:
    """A prefix: each layer's keys and values, (P, K, D) for every row, or (B, P, K, D).

    `present` (B, P) is True for a row's own keys and values, which come last, and False for filler;
    None: all are its own.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    present: BoolArray | None = None

    @property
    def length(self) -> int:
        """P."""
        return self.layers[0][0].shape[-3]

    def behind(self, front: Sequence[tuple[Tensor, Tensor]]) -> "VirtualKeys":
        """Prepend keys and values (F, K, D) to every row: a prefix of length F + P."""
        place = _Behind(front[0][0].shape[0], self.present)
        pairs = zip(front, self.layers, strict=True)
        return VirtualKeys(
            [(place.put(fk, k), place.put(fv, v)) for (fk, fv), (k, v) in pairs], place.present
        )


class _Behind:
    """The order in which `front` shared vectors come before the rows' own ones.

    Filler stays on the left: it moves before the front.
    """

    def __init__(self, front: int, present: BoolArray | None) -> None:
        self.present, self.order = present, None
        if present is not None:
            both = np.pad(present, ((0, 0), (front, 0)), constant_values=True)
            self.order = np.argsort(both, axis=1, kind="stable")  # (B, F + N)
            self.present = np.take_along_axis(both, self.order, axis=1)

    def put(self, front: Tensor, own: Tensor) -> Tensor:
        """(F, ...) and (N, ...) or (B, N, ...) -> (F + N, ...) or (B, F + N, ...)."""
        if self.order is not None and own.ndim == front.ndim:
            own = F.broadcast_to(own, (len(self.order), *own.shape))
        rows = own.shape[: own.ndim - front.ndim]
        both = F.concatenate(
            [F.broadcast_to(front, (*rows, *front.shape)), own] if rows else [front, own],
            axis=len(rows),
        )
        return both if self.order is None else both[np.arange(len(both))[:, None], self.order]


class NoPrompt(Module):
    """The absence of a prompt."""

    def __call__(self) -> VirtualTokens | None:
        return None


class NoPrefix(Module):
    """The absence of a prefix."""

    def __call__(self) -> VirtualKeys | None:
        return None


@dataclass(frozen=True, slots=True)
class Front:
    """The prompt and the prefix of one forward pass."""

    prompt: VirtualTokens | None
    prefix: VirtualKeys | None

    @property
    def tokens(self) -> int:
        """N, the length of the prompt."""
        return 0 if self.prompt is None else self.prompt.length

    @property
    def keys(self) -> int:
        """P, the length of the prefix."""
        return 0 if self.prefix is None else self.prefix.length

    def present_tokens(self, rows: int) -> BoolArray | None:
        """Mark the virtual tokens that each row has: (B, N). None without a prompt."""
        if self.prompt is None:
            return None
        present = self.prompt.present
        return np.ones((rows, self.tokens), bool) if present is None else present

    def before(self, x: Tensor) -> Tensor:
        """Prepend the prompt to each row of x: (B, T, D) -> (B, N + T, D)."""
        if self.prompt is None:
            return x
        shape = (x.shape[0], *self.prompt.states.shape[-2:])
        return F.concatenate([F.broadcast_to(self.prompt.states, shape), x], axis=1)

    def positions(self, own: IntArray, *, with_prompt: bool) -> IntArray:
        """Compute the tokens' positions after prefix and prompt, and the prompt's before them.

        `own` (T,) or (B, T) counts the tokens alone: (T,), (N + T,), or the same for each row.
        """
        if self.prompt is None and self.prefix is None:
            return own
        prefix = self._present(None if self.prefix is None else self.prefix.present, self.keys)
        prompt = self._present(None if self.prompt is None else self.prompt.present, self.tokens)
        after = prefix + prompt + own
        if not with_prompt or not self.tokens:
            return after
        virtual = prefix + np.maximum(np.arange(self.tokens) - self.tokens + prompt, 0)
        rows = np.broadcast_shapes(virtual.shape[:-1], after.shape[:-1])
        return np.concatenate(
            [np.broadcast_to(p, (*rows, p.shape[-1])) for p in (virtual, after)], axis=-1
        )

    def visible(self, mask: BoolArray | None, rows: int, tokens: int) -> BoolArray | None:
        """Join the mask (B, S) of the tokens to the front's: the keys to see, (B, P + N + S).

        None: all. Raises ShapeError for a mask of another shape.
        """
        if mask is not None and mask.shape != (rows, tokens):
            raise ShapeError(
                f"a padding mask of shape {mask.shape}, expected {(rows, tokens)} "
                f"for {rows} rows of {tokens} tokens"
            )
        prefix = None if self.prefix is None else self.prefix.present
        prompt = None if self.prompt is None else self.prompt.present
        if mask is None and prefix is None and prompt is None:
            return None
        parts = ((prefix, self.keys), (prompt, self.tokens), (mask, tokens))
        return np.concatenate(
            [np.ones((rows, n), bool) if known is None else known for known, n in parts], axis=1
        )

    def targets(self, labels: IntArray) -> IntArray:
        """Shift labels (B, T) to the positions that predict them: (B, N + T), -100 for no label.

        The last virtual token predicts the first token; in a row without one, nothing does.
        """
        targets = np.full((len(labels), self.tokens + labels.shape[1]), IGNORE_INDEX, np.int64)
        if not self.tokens:
            targets[:, :-1] = labels[:, 1:]
            return targets
        targets[:, self.tokens - 1 : -1] = labels
        if self.prompt is not None and self.prompt.present is not None:
            targets[~self.prompt.present[:, -1], self.tokens - 1] = IGNORE_INDEX
        return targets

    def first(self, rows: int) -> IntArray:
        """Find the position of each row's first vector, virtual or its own: (B,)."""
        if self.prompt is None or self.prompt.present is None:
            return np.zeros(rows, np.int64)
        return np.asarray(self.tokens - self.prompt.present.sum(axis=1))

    @staticmethod
    def _present(present: BoolArray | None, length: int) -> IntArray:
        """Count those present: (1,) for every row, or (B, 1)."""
        return np.array([length]) if present is None else present.sum(axis=1, keepdims=True)
