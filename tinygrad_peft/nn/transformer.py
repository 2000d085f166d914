"""One transformer that its config turns into GPT-2, Llama or BERT."""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import ConfigError, TokenError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.attention import MultiHeadAttention, PackedAttention
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.generate import generate
from tinygrad_peft.nn.init import Init
from tinygrad_peft.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from tinygrad_peft.nn.module import Module
from tinygrad_peft.nn.rotary import RotaryAngles
from tinygrad_peft.nn.seams import Affine, Attention, Context, Layer, TokenEmbedding
from tinygrad_peft.ops.loss import IGNORE_INDEX
from tinygrad_peft.tensor import Tensor

__all__ = ["Block", "FeedForward", "GatedFeedForward", "Transformer"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": F.gelu_tanh,
    "silu": F.silu,
    "relu": F.relu,
}


class FeedForward(Module):
    """down(act(up(x))): (B, T, D) -> (B, T, D)."""

    up_proj: Affine
    down_proj: Affine

    def __init__(self, config: TransformerConfig, init: Init) -> None:
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = Linear(width, inner, bias=bias, init=init)
        self.down_proj = Linear(inner, width, bias=bias, init=init)
        self.activation = _ACTIVATIONS[config.activation]

    def __call__(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class GatedFeedForward(Module):
    """down(silu(gate(x)) ⊙ up(x)): (B, T, D) -> (B, T, D)."""

    gate_proj: Affine
    up_proj: Affine
    down_proj: Affine

    def __init__(self, config: TransformerConfig, init: Init) -> None:
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias, init=init)
        self.up_proj = Linear(width, inner, bias=bias, init=init)
        self.down_proj = Linear(inner, width, bias=bias, init=init)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down_proj(F.swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(Module):
    """Attention and feed-forward layer, each with a residual and a norm before or after it.

    pre:   x + attn(norm(x)), x + mlp(norm(x));  post: norm(x + attn(x)), norm(x + mlp(x)).
    """

    attn: Attention
    attn_norm: Layer
    mlp: Layer
    mlp_norm: Layer

    def __init__(self, config: TransformerConfig, init: Init) -> None:
        self.attn_norm = _norm(config, init)
        self.attn = (PackedAttention if config.packed_qkv else MultiHeadAttention)(config, init)
        self.mlp_norm = _norm(config, init)
        self.mlp = (GatedFeedForward if config.gated_mlp else FeedForward)(config, init)
        self.dropout = Dropout(config.hidden_dropout)
        self.pre_norm = config.norm_position == "pre"

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attn(self.attn_norm(x), context))
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        x = self.attn_norm(x + self.dropout(self.attn(x, context)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class Transformer(Module):
    """Token ids to logits, class logits, or hidden states.

    `init` says where weights come from: `Init(seed)` by default, `Skeleton()` for shapes alone.
    """

    embed_tokens: TokenEmbedding
    embed_norm: Layer | None
    blocks: list[Block]
    final_norm: Layer | None
    pooler: Affine | None
    classifier: Affine | None
    lm_head: Affine | None

    adapted: bool = False  # a recipe was applied to it and not taken off again

    def __init__(self, config: TransformerConfig, init: Init | None = None) -> None:
        init = init or Init()
        width, post = config.hidden_size, config.norm_position == "post"
        self.config = config
        tokens = Embedding(config.vocab_size, width, init=init)
        self.embed_tokens = tokens
        self.embed_positions = (
            Embedding(config.max_position_embeddings, width, init=init)
            if config.positions == "learned"
            else None
        )
        self.embed_types = (
            Embedding(config.type_vocab_size, width, init=init) if config.type_vocab_size else None
        )
        self.embed_norm = _norm(config, init) if post else None
        self.dropout = Dropout(config.hidden_dropout)
        self.blocks = [Block(config, init) for _ in range(config.num_hidden_layers)]
        self.final_norm = None if post else _norm(config, init)
        self.pooler = Linear(width, width, init=init) if config.pooler else None
        self.classifier = None
        self.lm_head = None
        if config.head == "classification":
            self.classifier = Linear(width, config.num_labels, init=init)
        elif config.head == "lm" and config.tie_word_embeddings:
            self.lm_head = Linear.of(tokens.weight)
        elif config.head == "lm":
            self.lm_head = Linear(width, config.vocab_size, bias=False, init=init)
        self.angles = RotaryAngles(config) if config.positions == "rotary" else None

    def __call__(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """Ids (B, T) -> logits (B, T, V), class logits (B, C), or hidden states (B, T, D).

        `attention_mask` (B, T), or (B, cached + T) with a cache, is nonzero where a token is no
        padding. `positions` (T,) or (B, T) count on from the cache by default.

        Raises:
            TokenError: ids that are no matrix or outside the vocabulary, more tokens than
                positions, or a row to be averaged that is all padding.
            ShapeError: a mask of another shape.
        """
        hidden = self.hidden_states(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            positions=positions,
            cache=cache,
        )
        if self.classifier is not None:
            pooled = self.pool(hidden, attention_mask, tokens=input_ids.shape[1])
            return self.classifier(self.dropout(pooled))
        return hidden if self.lm_head is None else self.lm_head(hidden)

    def hidden_states(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """What the last block (and the final norm) gives, before any head: (B, T, D)."""
        if input_ids.ndim != 2:
            raise TokenError(f"token ids of shape {input_ids.shape}, expected (batch, tokens)")
        x = self.embed_tokens(input_ids)
        virtual = x.shape[1] - input_ids.shape[1]
        keys = _padding(attention_mask, virtual=virtual)
        if positions is None:
            start = cache[0].length if cache else 0
            positions = np.arange(start, start + x.shape[1])
        self._check_positions(positions)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        if self.embed_types is not None:
            types = np.zeros((1, 1), np.int64) if token_type_ids is None else token_type_ids
            if virtual and types.shape[1] > 1:
                types = np.pad(types, ((0, 0), (virtual, 0)))
            x = x + self.embed_types(types)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        x = self.dropout(x)
        rotary = None if self.angles is None else self.angles(positions, x.dtype)
        context = Context(keys=keys, rotary=rotary)
        for i, block in enumerate(self.blocks):
            x = block(x, dataclasses.replace(context, cache=cache[i]) if cache else context)
        return x if self.final_norm is None else self.final_norm(x)

    def pool(
        self,
        hidden: Tensor,
        attention_mask: BoolArray | IntArray | None,
        *,
        tokens: int | None = None,
    ) -> Tensor:
        """One vector a row, (B, P + T, D) -> (B, D): tanh(pooler(first position)), or the mean.

        The mean is over the last `tokens` positions, which leaves out virtual tokens, or over all,
        and without padding.

        Raises TokenError where a row is all padding.
        """
        if self.config.pooling == "cls":
            first = hidden[:, 0]
            return first if self.pooler is None else self.pooler(first).tanh()
        if tokens is not None and tokens != hidden.shape[1]:
            hidden = hidden[:, hidden.shape[1] - tokens :]
        keys = _padding(attention_mask, virtual=0)
        if keys is None:
            return hidden.mean(axis=1)
        counts = keys.sum(axis=1, keepdims=True)
        if not counts.all():
            raise TokenError(f"row {int(counts.argmin())} of the attention mask is all padding")
        weights = keys / counts
        return (hidden * Tensor(weights[:, :, None].astype(hidden.dtype))).sum(axis=1)

    def loss(
        self,
        input_ids: IntArray,
        labels: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The mean cross-entropy, a scalar.

        A classifier takes labels (B,). A language model takes labels (B, T), -100 where nothing is
        asked, and predicts each from the position before it; it never makes all its logits.

        Raises:
            ConfigError: the model has no head.
            TokenError: no label counts, or one is no class.
        """
        if self.classifier is not None:
            logits = self(input_ids, attention_mask)
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if self.lm_head is None:
            raise ConfigError("a bare encoder has no loss: give it a head with with_classifier()")
        if labels.shape != input_ids.shape:
            raise TokenError(f"labels {labels.shape} for input ids {input_ids.shape}")
        hidden = self.hidden_states(input_ids, attention_mask)
        targets = np.full(hidden.shape[:2], IGNORE_INDEX, np.int64)
        virtual = hidden.shape[1] - input_ids.shape[1]
        targets[:, max(virtual - 1, 0) : -1] = labels[:, 0 if virtual else 1 :]
        if isinstance(self.lm_head, Linear):
            return F.linear_cross_entropy(
                hidden,
                self.lm_head.weight,
                self.lm_head.bias,
                targets,
                label_smoothing=label_smoothing,
            )
        return F.cross_entropy(self.lm_head(hidden), targets, label_smoothing=label_smoothing)

    def generate(
        self,
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
        """Continue the prompts (B, T): int64 (B, T + new). See `tinygrad_peft.nn.generate`."""
        return generate(
            self,
            input_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop_ids=stop_ids,
            seed=seed,
            attention_mask=attention_mask,
            pad_id=pad_id,
            on_token=on_token,
        )

    def with_classifier(
        self, labels: int | Sequence[str], *, pooling: str = "mean", seed: int = 0
    ) -> None:
        """Put a new classification head in place of whatever head there is.

        `labels` are the names of the classes, or how many there are. The head's weight is drawn
        from `seed`, N(0, 0.02²), and its bias is zero. "cls" pooling goes through the pooler where
        the checkpoint has one.

        Raises ConfigError for another pooling, and for no labels.
        """
        if pooling not in ("cls", "mean"):
            raise ConfigError(f"pooling is 'cls' or 'mean', and not {pooling!r}")
        names = () if isinstance(labels, int) else tuple(labels)
        num_labels = labels if isinstance(labels, int) else len(names)
        self.config = dataclasses.replace(
            self.config,
            head="classification",
            num_labels=num_labels,
            label_names=names,
            pooling="cls" if pooling == "cls" else "mean",
        )
        init = Init((seed, 1), next(self.parameters()).dtype)
        head = Linear(self.config.hidden_size, num_labels, init=init)
        head.weight.data = init.normal(num_labels, self.config.hidden_size, std=0.02)
        self.lm_head, self.classifier = None, head

    def _check_positions(self, positions: IntArray) -> None:
        limit = self.config.max_position_embeddings
        if positions.size and positions.max() >= limit:
            raise TokenError(
                f"{int(positions.max()) + 1} tokens are more than the model's {limit} positions"
            )


def _padding(attention_mask: BoolArray | IntArray | None, *, virtual: int) -> BoolArray | None:
    """The mask as booleans, with the virtual tokens in front never masked: (B, virtual + T)."""
    if attention_mask is None:
        return None
    keys = np.asarray(attention_mask) != 0
    return np.pad(keys, ((0, 0), (virtual, 0)), constant_values=True) if virtual else keys


def _norm(config: TransformerConfig, init: Init) -> LayerNorm | RMSNorm:
    kind = RMSNorm if config.norm == "rms_norm" else LayerNorm
    return kind(config.hidden_size, config.norm_eps, init=init)
