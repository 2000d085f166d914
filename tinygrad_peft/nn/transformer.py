"""One transformer that its config turns into GPT-2, Llama or BERT."""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import ConfigError, ShapeError, TokenError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.block import Block, make_norm
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.generate import generate
from tinygrad_peft.nn.init import Init
from tinygrad_peft.nn.layers import Dropout, Embedding, Linear
from tinygrad_peft.nn.module import Module
from tinygrad_peft.nn.rotary import RotaryAngles
from tinygrad_peft.nn.seams import (
    Affine,
    Context,
    Layer,
    Prefix,
    Prompt,
    TokenEmbedding,
)
from tinygrad_peft.nn.virtual import Front, NoPrefix, NoPrompt
from tinygrad_peft.tensor import Tensor

__all__ = ["Transformer"]


class Transformer(Module):
    """Token ids to logits, class logits, or hidden states.

    `init` says where weights come from: `Init(seed)` by default, `Skeleton()` for shapes alone.
    """

    embed_tokens: TokenEmbedding
    prompt: Prompt
    prefix: Prefix
    embed_norm: Layer | None
    blocks: list[Block]
    final_norm: Layer | None
    pooler: Affine | None
    classifier: Affine | None
    lm_head: Affine | None

    adapted: bool = False  # a recipe was applied to it and not taken off again
    name_or_path: str | None = None  # what it was loaded from, if it was
    revision: str | None = None  # the commit, where that is the hub's

    def __init__(self, config: TransformerConfig, init: Init | None = None) -> None:
        init = init or Init()
        width, post = config.hidden_size, config.norm_position == "post"
        self.config = config
        tokens = Embedding(config.vocab_size, width, init=init)
        self.embed_tokens = tokens
        self.prompt, self.prefix = NoPrompt(), NoPrefix()
        self.embed_positions = (
            Embedding(config.max_position_embeddings, width, init=init)
            if config.positions == "learned"
            else None
        )
        self.embed_types = (
            Embedding(config.type_vocab_size, width, init=init) if config.type_vocab_size else None
        )
        self.embed_norm = make_norm(config, init) if post else None
        self.dropout = Dropout(config.hidden_dropout)
        self.blocks = [Block(config, init) for _ in range(config.num_hidden_layers)]
        self.final_norm = None if post else make_norm(config, init)
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

        A prompt of N virtual tokens comes first: (B, N + T, V) or (B, N + T, D).

        `attention_mask` (B, T), or (B, cached + T) with a cache, is nonzero where a token is no
        padding. `positions` (T,) or (B, T) count the tokens alone, on from the cache by default.

        Raises:
            TokenError: ids that are no matrix or outside the vocabulary, more tokens than
                positions, or a row to be averaged that is all padding.
            ShapeError: a mask or token types of another shape.
        """
        front = Front(self.prompt(), self.prefix())
        hidden = self._hidden_states(
            front, input_ids, attention_mask, token_type_ids, positions, cache
        )
        if self.classifier is not None:
            pooled = self._pool(front, hidden, attention_mask)
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
        """What the last block (and the final norm) gives, before any head: (B, N + T, D).

        A prompt of N virtual tokens comes first; without one, N is 0.
        """
        front = Front(self.prompt(), self.prefix())
        return self._hidden_states(
            front, input_ids, attention_mask, token_type_ids, positions, cache
        )

    def pooled(
        self, input_ids: IntArray, attention_mask: BoolArray | IntArray | None = None
    ) -> Tensor:
        """What a classifier is given of each text: (B, D).

        Raises TokenError as a call does.
        """
        front = Front(self.prompt(), self.prefix())
        hidden = self._hidden_states(front, input_ids, attention_mask, None, None, None)
        return self._pool(front, hidden, attention_mask)

    def _hidden_states(
        self,
        front: Front,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None,
        token_type_ids: IntArray | None,
        positions: IntArray | None,
        cache: Sequence[LayerCache] | None,
    ) -> Tensor:
        if input_ids.ndim != 2:
            raise TokenError(f"token ids of shape {input_ids.shape}, expected (batch, tokens)")
        rows, tokens = input_ids.shape
        starts = not cache or not cache[0].length  # then the prompt is not in the cache yet
        past = 0 if starts or not cache else cache[0].length - front.tokens
        own = np.arange(past, past + tokens) if positions is None else positions
        places = front.positions(own, with_prompt=starts)
        self._check_positions(places)
        x = self._embed(input_ids, token_type_ids, places, front if starts else Front(None, None))
        mask = None if attention_mask is None else np.asarray(attention_mask) != 0
        context = Context(
            keys=front.visible(mask, rows, past + tokens),
            rotary=None if self.angles is None else self.angles(places, x.dtype),
        )
        for i, block in enumerate(self.blocks):
            own_cache = cache[i] if cache else None
            own_prefix = None if front.prefix is None else front.prefix.layers[i]
            x = block(x, dataclasses.replace(context, cache=own_cache, prefix=own_prefix))
        return x if self.final_norm is None else self.final_norm(x)

    def _embed(
        self, input_ids: IntArray, types: IntArray | None, places: IntArray, front: Front
    ) -> Tensor:
        """The tokens with their places and types, behind the prompt: (B, N + T, D)."""
        x = front.before(self.embed_tokens(input_ids))
        if self.embed_positions is not None:
            x = x + self.embed_positions(places)
        if self.embed_types is not None:
            types = np.zeros((1, 1), np.int64) if types is None else types
            if types.shape not in ((1, 1), input_ids.shape):
                raise ShapeError(f"token_type_ids {types.shape} for input ids {input_ids.shape}")
            if types.shape[1] > 1:
                types = np.pad(types, ((0, 0), (front.tokens, 0)))  # the prompt's type is 0
            x = x + self.embed_types(types)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return self.dropout(x)

    def _pool(
        self, front: Front, hidden: Tensor, attention_mask: BoolArray | IntArray | None
    ) -> Tensor:
        """One vector a row, (B, N + T, D) -> (B, D): tanh(pooler(first place)), or the mean.

        The first place is the prompt's where there is one, as in Hugging Face PEFT; the mean is
        over the tokens, without the prompt and without padding.

        Raises TokenError where a row is all padding.
        """
        rows = hidden.shape[0]
        if self.config.pooling == "cls":
            first = hidden[np.arange(rows), front.first(rows)]
            return first if self.pooler is None else self.pooler(first).tanh()
        hidden = hidden[:, front.tokens :] if front.tokens else hidden
        if attention_mask is None:
            return hidden.mean(axis=1)
        keys = np.asarray(attention_mask) != 0
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
        asked, and predicts each from the position before it, the first from a prompt's last virtual
        token; it never makes all its logits.

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
        front = Front(self.prompt(), self.prefix())
        hidden = self._hidden_states(front, input_ids, attention_mask, None, None, None)
        targets = front.targets(labels)
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

    @property
    def num_virtual_tokens(self) -> int:
        """How many positions a prompt and a prefix take in front of every text."""
        front = Front(self.prompt(), self.prefix())
        return front.tokens + front.keys

    def _check_positions(self, positions: IntArray) -> None:
        limit = self.config.max_position_embeddings
        if positions.size and positions.max() >= limit:
            virtual = self.num_virtual_tokens
            among = f" ({virtual} of them virtual)" if virtual else ""
            raise TokenError(
                f"{int(positions.max()) + 1} tokens{among} are more than the model's "
                f"{limit} positions"
            )
