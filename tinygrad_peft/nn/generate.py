"""Text from a causal language model, token by token, with keys and values kept."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, IntArray
from tinygrad_peft.errors import ConfigError, TokenError, listed
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.tensor import Tensor, no_grad

__all__ = ["CausalModel", "generate"]


class CausalModel(Protocol):
    """What `generate` asks of a model; `Transformer` says what the arguments are."""

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
    ) -> Tensor: ...

    def hidden_states(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor: ...


def generate(
    model: CausalModel,
    input_ids: IntArray,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Collection[int] = (),
    seed: int = 0,
    attention_mask: BoolArray | IntArray | None = None,
    pad_id: int = 0,
    on_token: Callable[[IntArray], None] | None = None,
) -> IntArray:
    """Continue the prompts (B, T): int64 (B, T + new), with at most `max_new_tokens` new.

    Temperature 0 takes the likeliest token; above, tokens are drawn from softmax(logits /
    temperature), among the likeliest whose probabilities reach `top_p` (Holtzman et al. 2020,
    section 3.1). The same seed draws the same tokens. Prompts of different lengths are padded on
    the left, and `attention_mask` (B, T) is nonzero where a token is no padding. A row that has
    produced one of `stop_ids` goes on with `pad_id`; when all have, generation ends. `on_token`
    is given each step's tokens (B,). Dropout acts if the model is in training mode.

    Raises:
        ConfigError: a setting that cannot be, or a model without a language-model head.
        TokenError: an empty prompt, ids outside the vocabulary, padding that is not on the left,
            or more tokens than the model has positions.
    """
    _check_settings(model.config, max_new_tokens, temperature, top_p, {pad_id, *stop_ids})
    ids = _prompt(input_ids)
    keys = _checked_mask(ids, attention_mask)
    _check_length(model, keys, max_new_tokens)
    decoder = _Decoder(model, keys, max_new_tokens)
    picker = _Picker(temperature, top_p, seed)
    finished = np.zeros(len(ids), bool)
    with no_grad():
        decoder.read(ids[:, :-1])
        for _ in range(max_new_tokens):
            tokens = np.where(finished, pad_id, picker.pick(decoder.logits(ids[:, -1:])))
            ids = np.concatenate([ids, tokens[:, None]], axis=1)  # (B, T + 1)
            if on_token is not None:
                on_token(tokens)
            finished |= np.isin(tokens, list(stop_ids))
            if finished.all():
                break
    return ids


class _Decoder:
    """A model, and how far it has read in each row."""

    def __init__(self, model: CausalModel, keys: BoolArray, new: int) -> None:
        self.model = model
        capacity = model.num_virtual_tokens + keys.shape[1] + new
        self.cache = [LayerCache(capacity) for _ in range(model.config.num_hidden_layers)]
        self.keys = np.pad(keys, ((0, 0), (0, new)), constant_values=True)  # (B, T + new)
        self.padded = not keys.all()
        self.positions = np.maximum(np.cumsum(self.keys, axis=1) - 1, 0)  # (B, T + new)
        self.done = 0  # how many tokens a row it has read

    def read(self, ids: IntArray) -> None:
        """Take in the tokens (B, T), and ask for no logits."""
        if ids.shape[1]:
            mask, positions = self._place(ids.shape[1])
            self.model.hidden_states(ids, mask, positions=positions, cache=self.cache)

    def logits(self, ids: IntArray) -> Array:
        """Take in one token a row (B, 1) and say what may come next: (B, V)."""
        mask, positions = self._place(1)
        return self.model(ids, mask, positions=positions, cache=self.cache).data[:, -1]

    def _place(self, count: int) -> tuple[BoolArray | None, IntArray | None]:
        """The mask up to and the positions of the next `count` tokens; None without padding."""
        start, self.done = self.done, self.done + count
        if not self.padded:
            return None, None
        return self.keys[:, : self.done], self.positions[:, start : self.done]


class _Picker:
    """Chooses a token a row from logits."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.rng = np.random.default_rng(seed)

    def pick(self, logits: Array) -> IntArray:
        """Logits (B, V) -> tokens (B,)."""
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
    """Zero but for the likeliest tokens of each row whose probabilities reach `top_p` together."""
    if top_p == 1:
        return probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    above = ranked.cumsum(axis=1) - ranked  # what the likelier ones have together
    kept = np.zeros_like(probabilities)
    np.put_along_axis(kept, order, np.where(above < top_p, ranked, 0), axis=1)
    return kept


def _check_settings(
    config: TransformerConfig,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    tokens: Collection[int],
) -> None:
    outside = sorted(token for token in tokens if not 0 <= token < config.vocab_size)
    rules = {
        "the model has no language-model head": config.head == "lm" and config.causal,
        f"max_new_tokens is {max_new_tokens}, expected at least 1": max_new_tokens >= 1,
        f"temperature is {temperature}, expected at least 0": 0 <= temperature < np.inf,
        f"top_p is {top_p}, expected above 0 and at most 1": 0 < top_p <= 1,
        f"stop_ids and pad_id {outside} are outside the vocabulary 0..{config.vocab_size - 1}": (
            not outside
        ),
    }
    problems = [problem for problem, holds in rules.items() if not holds]
    if problems:
        raise ConfigError(f"nothing can be generated:\n{listed(problems)}")


def _prompt(input_ids: IntArray) -> IntArray:
    if input_ids.ndim != 2 or not input_ids.size or input_ids.dtype.kind not in "iu":
        raise TokenError(
            f"a prompt of shape {input_ids.shape} and dtype {input_ids.dtype}: "
            "expected integers (B, T) with at least one token a row"
        )
    return input_ids.astype(np.int64)


def _checked_mask(ids: IntArray, attention_mask: BoolArray | IntArray | None) -> BoolArray:
    """The mask as booleans (B, T); all True where there is none."""
    if attention_mask is None:
        return np.ones(ids.shape, bool)
    keys: BoolArray = np.asarray(attention_mask) != 0
    if keys.shape != ids.shape:
        raise TokenError(f"attention_mask {keys.shape} for prompts {ids.shape}")
    right = np.flatnonzero(~keys[:, -1] | (np.diff(keys.astype(np.int8), axis=1) < 0).any(axis=1))
    if right.size:
        raise TokenError(f"prompts are padded on the left, and rows {right.tolist()} are not")
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
