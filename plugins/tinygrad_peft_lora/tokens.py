"""Single tokens' vectors, trained whole: rows of a table that is frozen otherwise.

    y = T[k]    where the id is the k-th of those that are trained
        W₀[i]   for any other id i

They take the place of the base's rows, and are not added to them. An output layer that is tied to
the embedding gives the logits of the same tokens by the same vectors, x Tᵀ; there is one T of both.
Merged, both are plain, of one weight with these rows in it.
"""

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Affine, Embedding, Linear, Module, Parameter, TokenEmbedding
from tinygrad_peft.nn import functional as F
from tinygrad_peft.ops import Result
from tinygrad_peft.peft import Site, matches
from tinygrad_peft.tensor import Tensor, apply, no_grad
from tinygrad_peft_lora.config import INPUT, LoraConfig
from tinygrad_peft_lora.layer import Mergeable

__all__ = ["TrainedLogits", "TrainedTokens", "adapt_tokens", "shares_weight", "trained_ids"]


class TrainedTokens(Mergeable):
    """An embedding with trained vectors of some ids: (...) -> (..., embedding_dim)."""

    base_layer: TokenEmbedding

    def __init__(self, base: TokenEmbedding, ids: Sequence[int]) -> None:
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.base_layer = base
        self.ids = np.array(ids)
        self.place = np.full(self.num_embeddings, -1)  # of each id in T; -1: it is not trained
        self.place[self.ids] = np.arange(len(self.ids))
        with no_grad():
            self.trainable_tokens_delta = Parameter(base(self.ids).data.copy())  # T (k, d)

    def __call__(self, ids: IntArray) -> Tensor:
        y = self.base_layer(ids)  # which checks the ids
        place = self.place[ids]
        trained = F.embedding(self.trainable_tokens_delta, np.maximum(place, 0))
        return F.where((place >= 0)[..., None], trained, y)

    def merge(self) -> Embedding | None:
        """The plain embedding; None on a base that is none itself."""
        if not isinstance(self.base_layer, Embedding):
            return None
        merged = copy.copy(self.base_layer)
        merged.weight = _with_rows(merged.weight, self.ids, self.trainable_tokens_delta)
        return merged


class TrainedLogits(Mergeable):
    """An output layer with trained rows of some ids: (..., in_features) -> (..., out_features)."""

    base_layer: Affine

    def __init__(self, base: Affine, ids: Sequence[int] | IntArray, rows: Parameter) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.ids = np.array(ids)
        self.trainable_tokens_delta = rows  # (k, d)

    def __call__(self, x: Tensor) -> Tensor:
        own = F.linear(x, self.trainable_tokens_delta)  # (..., k)
        return apply(_with_columns, self.base_layer(x), own, ids=self.ids)

    def merge(self) -> Linear | None:
        """The plain layer; None on a base that is none itself."""
        base = self.base_layer
        if not isinstance(base, Linear):
            return None
        return Linear.of(_with_rows(base.weight, self.ids, self.trainable_tokens_delta))


def trained_ids(config: LoraConfig, path: str, slot: str) -> tuple[int, ...]:
    """The tokens that the config trains at a place; none for most."""
    ids = config.trainable_token_indices
    if isinstance(ids, Mapping):
        return next((tuple(own) for name, own in ids.items() if matches(path, [name])), ())
    return tuple(ids or ()) if slot == INPUT else ()


def adapt_tokens(site: Site, config: LoraConfig) -> Module | None:
    """What stands in a place of which the config trains tokens, or that is tied to one."""
    base = site.module
    ids = trained_ids(config, site.path, site.slot)
    if isinstance(base, TokenEmbedding):
        return TrainedTokens(base, ids) if ids else None
    if not isinstance(base, Affine) or site.slot != "lm_head" or not config.token_ids():
        return None
    embedding = dict(site.model.children()).get(INPUT)
    if isinstance(embedding, TrainedTokens) and shares_weight(base, embedding):
        return TrainedLogits(base, embedding.ids, embedding.trainable_tokens_delta)
    if not ids:
        return None
    if not isinstance(base, Linear):
        kind = type(base).__name__
        raise PeftError(f"{site.path}: tokens of a plain layer can be trained, and not of {kind}")
    return TrainedLogits(base, ids, Parameter(base.weight.data[list(ids)]))


def shares_weight(one: Module, other: Module) -> bool:
    """Whether the bases of both, under all that stands around them, have one weight."""
    weights = [dict(_innermost(module).own_parameters()).get("weight") for module in (one, other)]
    return weights[0] is not None and weights[0] is weights[1]


def _innermost(module: Module) -> Module:
    """What all that stands in a place is wrapped around."""
    while isinstance(inner := getattr(module, "base_layer", None), Module):
        module = inner
    return module


def _with_rows(weight: Parameter, ids: IntArray, rows: Parameter) -> Parameter:
    merged = weight.data.copy()
    merged[ids] = rows.data
    return Parameter(merged)


def _with_columns(y: Array, own: Array, *, ids: IntArray) -> Result:
    """y (..., V) with the columns `ids` replaced by those of `own` (..., k)."""
    replaced = y.copy()
    replaced[..., ids] = own

    def pullback(g: Array) -> Array:
        rest = g.copy()
        rest[..., ids] = 0
        return rest

    return replaced, (pullback, lambda g: g[..., ids])
