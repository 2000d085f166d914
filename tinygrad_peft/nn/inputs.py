"""The inputs of one forward pass, and what follows from them alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import ShapeError, TokenError
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.roles import Roles
from tinygrad_peft.nn.virtual import Front

__all__ = ["Inputs"]


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """B rows of T tokens, what stands in front of them, and what was read before.

    `Transformer.__call__` describes the fields.

    Raises TokenError for ids that are not a matrix and for prompt lengths that are not integers,
    and ShapeError for token types or prompt lengths of another shape.
    """

    front: Front
    ids: IntArray  # (B, T)
    attention_mask: BoolArray | IntArray | None = None  # (B, cached + T)
    token_type_ids: IntArray | None = None  # (B, T) or (1, 1)
    positions: IntArray | None = None  # (B, T) or (T,)
    cache: Sequence[LayerCache] | None = None  # one per layer
    prompt_lengths: IntArray | None = None  # (B,)

    def __post_init__(self) -> None:
        if self.ids.ndim != 2:
            raise TokenError(f"token ids of shape {self.ids.shape}, expected (batch, tokens)")
        types, lengths = self.token_type_ids, self.prompt_lengths
        if types is not None and types.shape not in ((1, 1), self.ids.shape):
            raise ShapeError(f"token_type_ids {types.shape} for input ids {self.ids.shape}")
        if lengths is None:
            return
        if not isinstance(lengths, np.ndarray) or lengths.dtype.kind not in "iu":
            raise TokenError(f"prompt_lengths: expected an array of integers, got {lengths!r:.80}")
        if lengths.shape != (len(self.ids),):
            raise ShapeError(f"prompt_lengths {lengths.shape} for input ids {self.ids.shape}")
        if lengths.min(initial=1) < 1:
            raise TokenError(f"prompt_lengths: expected at least 1, got {lengths.min()}")

    @property
    def mask(self) -> BoolArray | None:
        """True for a real token, False for padding: (B, cached + T). None: all are real."""
        return None if self.attention_mask is None else np.asarray(self.attention_mask) != 0

    @property
    def starts(self) -> bool:
        """True for the first pass over these rows: the prompt is not in the cache yet."""
        return not self.cache or not self.cache[0].length

    @property
    def cached(self) -> int:
        """The tokens per row that the cache has, without the virtual ones."""
        return 0 if self.starts or not self.cache else self.cache[0].length - self.front.tokens

    @property
    def token_types(self) -> IntArray:
        """Return the token types, 0 by default and for a prompt: (B, N + T), or (1, 1) for all."""
        if self.token_type_ids is None:
            return np.zeros((1, 1), np.int64)
        virtual = self.front.tokens if self.starts and self.token_type_ids.shape[1] > 1 else 0
        return np.pad(self.token_type_ids, ((0, 0), (virtual, 0)))

    def all_positions(self) -> IntArray:
        """Number the positions of the vectors in this pass: (N + T,) or (B, N + T)."""
        own = self.positions
        if own is None:
            own = np.arange(self.cached, self.cached + self.ids.shape[1])
        return self.front.positions(own, with_prompt=self.starts)

    def keys(self) -> BoolArray | None:
        """Mark the keys that attention may see: (B, P + N + cached + T). None: all.

        Raises ShapeError for a mask of another shape.
        """
        rows, tokens = self.ids.shape
        return self.front.visible(self.mask, rows, self.cached + tokens)

    def roles(self) -> Roles:
        """Assign the roles of the positions in this pass: (B, N + T)."""
        rows, tokens = self.ids.shape
        virtual = self.front.present_tokens(rows) if self.starts else None
        places = tokens if virtual is None else virtual.shape[1] + tokens
        return Roles((rows, places), virtual, self.cached, self.mask, self.prompt_lengths)
