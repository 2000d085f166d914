"""Vectors of single tokens, trained whole: rows of an otherwise frozen table.

    y = T[k]    for the k-th trained id
        W₀[i]   for any other id i

T's rows replace the base's, and are not added to them. An output layer tied to the embedding
computes the logits of these tokens by the same vectors, x Tᵀ: both share one T. Merged, both are
plain and share one weight with these rows in it.
"""

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Affine, Embedding, Linear, Module, Parameter, TokenEmbedding
from tinygrad_peft.nn import functional as F
from tinygrad_peft.ops import Result
from tinygrad_peft.peft import ModelShape, Site, matches
from tinygrad_peft.tensor import Tensor, apply, no_grad
from tinygrad_peft_lora.config import INPUT, LoraConfig
from tinygrad_peft_lora.layer import Mergeable

__all__ = [
    "TrainedLogits",
    "TrainedTokens",
    "adapt_tokens",
    "shares_weight",
    "trained_elements",
    "trained_ids",
]


class TrainedTokens(Mergeable):
    """An embedding with trained vectors for some ids: (...) -> (..., embedding_dim)."""

    base_layer: TokenEmbedding

    def __init__(self, base: TokenEmbedding, ids: Sequence[int]) -> None:
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.base_layer = base
        self.ids = np.array(ids)
        self.place = np.full(
            self.num_embeddings, -1
        )  # each id's row in T; -1 where it is not trained
        self.place[self.ids] = np.arange(len(self.ids))
        with no_grad():
            self.trainable_tokens_delta = Parameter(base(self.ids).data.copy())  # T (k, d)

    def __call__(self, ids: IntArray) -> Tensor:
        y = self.base_layer(ids)  # which checks the ids
        place = self.place[ids]
        trained = F.embedding(self.trainable_tokens_delta, np.maximum(place, 0))
        return F.where((place >= 0)[..., None], trained, y)

    def merge(self) -> Embedding | None:
        """Return the plain embedding; None where the base is not plain."""
        if not isinstance(self.base_layer, Embedding):
            return None
        merged = copy.copy(self.base_layer)
        merged.weight = _with_rows(merged.weight, self.ids, self.trainable_tokens_delta)
        return merged


class TrainedLogits(Mergeable):
    """An output layer with trained rows for some ids: (..., in_features) -> (..., out_features)."""

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
        """Return the plain layer; None where the base is not plain."""
        base = self.base_layer
        if not isinstance(base, Linear):
            return None
        return Linear.of(_with_rows(base.weight, self.ids, self.trainable_tokens_delta))


def trained_ids(config: LoraConfig, path: str, slot: str) -> tuple[int, ...]:
    """Return the tokens that the config trains in the module at a path."""
    ids = config.trainable_token_indices
    if isinstance(ids, Mapping):
        return next((tuple(own) for name, own in ids.items() if matches(path, [name])), ())
    return tuple(ids or ()) if slot == INPUT else ()


def trained_elements(config: LoraConfig, shape: ModelShape) -> int:
    """Count the vectors of trained tokens; a tied output layer shares its embedding's."""
    elements = sum(
        len(trained_ids(config, table.path, table.slot)) * table.embedding_dim
        for table in shape.embeddings
    )
    if shape.head is None or any(table.tied for table in shape.embeddings):
        return elements
    ids = trained_ids(config, shape.head.path, "lm_head")
    return elements + len(ids) * shape.head.in_features


def adapt_tokens(site: Site, config: LoraConfig) -> Module | None:
    """Wrap an embedding with trained tokens, or the output layer tied to it."""
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
        raise PeftError(f"{site.path}: expected a plain layer to train tokens of, got {kind}")
    return TrainedLogits(base, ids, Parameter(base.weight.data[list(ids)]))


def shares_weight(one: Module, other: Module) -> bool:
    """Tell whether two modules share one weight, below any wrappers."""
    weights = [dict(_innermost(module).own_parameters()).get("weight") for module in (one, other)]
    return weights[0] is not None and weights[0] is weights[1]


def _innermost(module: Module) -> Module:
    """Return the module below all wrappers."""
    while isinstance(inner := getattr(module, "base_layer", None), Module):
        module = inner
    return module


def _with_rows(weight: Parameter, ids: IntArray, rows: Parameter) -> Parameter:
    merged = weight.data.copy()
    merged[ids] = rows.data
    return Parameter(merged)


def _with_columns(y: Array, own: Array, *, ids: IntArray) -> Result:
    """Replace the columns `ids` of y (..., V) by `own` (..., k)."""
    replaced = y.copy()
    replaced[..., ids] = own

    def pullback(g: Array) -> Array:
        rest = g.copy()
        rest[..., ids] = 0
        return rest

    return replaced, (pullback, lambda g: g[..., ids])
