"""Text from a causal language model, token by token, with keys and values kept."""

from collections.abc import Callable, Sequence
from typing import Protocol, Unpack

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, IntArray
from tinygrad_peft.errors import LISTED, NumericalError, TokenError
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.generation import Generation, GenerationSettings, generation_of
from tinygrad_peft.tensor import Tensor, no_grad

__all__ = ["CausalModel", "generate"]


class CausalModel(Protocol):
    """The part of a model that `generate` uses; see `Transformer` for the arguments."""

    @property
    def config(self) -> TransformerConfig: ...

    @property
    def num_virtual_tokens(self) -> int: ...

    def __call__(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
        prompt_lengths: IntArray | None = None,
    ) -> Tensor: ...

    def hidden_states(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
        prompt_lengths: IntArray | None = None,
    ) -> Tensor: ...


def generate(
    model: CausalModel,
    input_ids: IntArray,
    generation: Generation | None = None,
    *,
    attention_mask: BoolArray | IntArray | None = None,
    on_token: Callable[[IntArray], None] | None = None,
    **settings: Unpack[GenerationSettings],
) -> IntArray:
    """Continue the prompts (B, T): int64 (B, T + new), with at most `max_new_tokens` new.

    The settings are a `Generation`, or the same by keyword: `generate(ids, max_new_tokens=20)`.
    Prompts of different lengths are padded on the left, and `attention_mask` (B, T) is nonzero for
    a real token and zero for padding. A row that has produced one of `stop_ids` goes on with
    `pad_id`; when all have, generation ends. `on_token` gets each step's tokens (B,). Dropout acts
    if the model is in training mode.

    Raises:
        ConfigError: invalid settings, settings given in both ways, a model without a language-model
            head, or ids in the settings outside its vocabulary.
        NumericalError: logits with NaN or infinity, as of weights that have one.
        TokenError: an empty prompt, ids outside the vocabulary, padding on the right, or more
            tokens than the model has positions.
    """
    generation = generation_of(generation, settings)
    generation.check(model.config)
    ids = _prompt(input_ids)
    keys = _checked_mask(ids, attention_mask)
    _check_length(model, keys, generation.max_new_tokens)
    decoder = _Decoder(model, keys, generation.max_new_tokens)
    picker = _Picker(generation)
    stop_ids, finished = list(generation.stop_ids), np.zeros(len(ids), bool)
    # Overflows are found by their results.
    with no_grad(), np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        decoder.read(ids[:, :-1])
        for _ in range(generation.max_new_tokens):
            picked = picker.pick(_finite(decoder.logits(ids[:, -1:])))
            tokens = np.where(finished, generation.pad_id, picked)
            ids = np.concatenate([ids, tokens[:, None]], axis=1)  # (B, T + 1)
            if on_token is not None:
                on_token(tokens)
            finished |= np.isin(tokens, stop_ids)
            if finished.all():
                break
    return ids


class _Decoder:
    """A model, and the number of tokens per row that it has read."""

    def __init__(self, model: CausalModel, keys: BoolArray, new: int) -> None:
        self.model = model
        capacity = model.num_virtual_tokens + keys.shape[1] + new
        self.cache = [LayerCache(capacity) for _ in range(model.config.num_hidden_layers)]
        self.keys = np.pad(keys, ((0, 0), (0, new)), constant_values=True)  # (B, T + new)
        self.padded = not keys.all()
        self.positions = np.maximum(np.cumsum(self.keys, axis=1) - 1, 0)  # (B, T + new)
        self.prompt_lengths = keys.sum(axis=1)  # (B,)
        self.done = 0  # tokens read, per row

    def read(self, ids: IntArray) -> None:
        """Take in the tokens (B, T) without computing logits."""
        if ids.shape[1]:
            mask, positions = self._place(ids.shape[1])
            self.model.hidden_states(
                ids,
                mask,
                positions=positions,
                cache=self.cache,
                prompt_lengths=self.prompt_lengths,
            )

    def logits(self, ids: IntArray) -> Array:
        """Take in one token per row (B, 1); return the logits of the next: (B, V)."""
        mask, positions = self._place(1)
        logits = self.model(
            ids,
            mask,
            positions=positions,
            cache=self.cache,
            prompt_lengths=self.prompt_lengths,
        )
        return logits.data[:, -1]

    def _place(self, count: int) -> tuple[BoolArray | None, IntArray | None]:
        """Return the mask up to, and the positions of, the next tokens; None without padding."""
        start, self.done = self.done, self.done + count
        if not self.padded:
            return None, None
        return self.keys[:, : self.done], self.positions[:, start : self.done]


class _Picker:
    """The choice of one token per row by its logits."""

    def __init__(self, generation: Generation) -> None:
        self.temperature = generation.temperature
        self.top_p = generation.top_p
        self.rng = np.random.default_rng(generation.seed)

    def pick(self, logits: Array) -> IntArray:
        """Map logits (B, V) to tokens (B,)."""
        if self.temperature == 0:
            return np.asarray(logits.argmax(axis=1))
        scores = logits.astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)  # first, or a small temperature overflows
        with np.errstate(over="ignore"):
            weights = np.exp(scores / self.temperature)
        weights = _nucleus(weights / weights.sum(axis=1, keepdims=True), self.top_p)
        heights = weights.cumsum(axis=1)
        drawn = self.rng.random((len(logits), 1)) * heights[:, -1:]
        return np.asarray((heights <= drawn).sum(axis=1))


def _nucleus(probabilities: Array, top_p: float) -> Array:
    """Zero all but the likeliest tokens of each row, which reach `top_p` together: (B, V)."""
    if top_p == 1:
        return probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    above = ranked.cumsum(axis=1) - ranked  # the sum over the likelier ones
    kept = np.zeros_like(probabilities)
    np.put_along_axis(kept, order, np.where(above < top_p, ranked, 0), axis=1)
    return kept


def _finite(logits: Array) -> Array:
    """Return the logits (B, V). Raises NumericalError for rows with NaN or infinity."""
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        rows = ", ".join(map(str, broken[:LISTED]))
        raise NumericalError(
            f"the next token's logits: expected finite numbers, rows {rows} have NaN or infinity"
        )
    return logits


def _prompt(input_ids: IntArray) -> IntArray:
    if input_ids.ndim != 2 or not input_ids.size or input_ids.dtype.kind not in "iu":
        raise TokenError(
            "prompt: expected integers (B, T) with at least one token per row, "
            f"got {input_ids.dtype} {input_ids.shape}"
        )
    return input_ids.astype(np.int64)


def _checked_mask(ids: IntArray, attention_mask: BoolArray | IntArray | None) -> BoolArray:
    """Convert the mask to booleans (B, T), all True without one."""
    if attention_mask is None:
        return np.ones(ids.shape, bool)
    keys: BoolArray = np.asarray(attention_mask) != 0
    if keys.shape != ids.shape:
        raise TokenError(f"attention_mask: expected {ids.shape}, got {keys.shape}")
    right = np.flatnonzero(~keys[:, -1] | (np.diff(keys.astype(np.int8), axis=1) < 0).any(axis=1))
    if right.size:
        raise TokenError(
            f"prompts: expected padding on the left alone, got other in rows {right.tolist()}"
        )
    return keys


def _check_length(model: CausalModel, keys: BoolArray, new: int) -> None:
    longest, limit = int(keys.sum(axis=1).max()), model.config.max_position_embeddings
    virtual = model.num_virtual_tokens
    if virtual + longest + new > limit:
        before = f"{virtual} virtual tokens, " if virtual else ""
        raise TokenError(
            f"{before}a prompt of {longest} tokens and {new} new ones are more than the model's "
            f"{limit} positions"
        )
