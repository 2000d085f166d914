"""One transformer that its config turns into GPT-2, Llama or BERT."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import ConfigError, TokenError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.block import Block, make_norm
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.generate import generate
from tinygrad_peft.nn.generation import Generation, GenerationSettings
from tinygrad_peft.nn.heads import POOLINGS, classifier_config, new_dense, require_one_class
from tinygrad_peft.nn.init import Init
from tinygrad_peft.nn.inputs import Inputs
from tinygrad_peft.nn.layers import Dropout, Embedding, Linear
from tinygrad_peft.nn.module import Module
from tinygrad_peft.nn.rotary import RotaryAngles
from tinygrad_peft.nn.seams import (
    Affine,
    BlockLike,
    Context,
    Norm,
    Prefix,
    Prompt,
    TokenEmbedding,
)
from tinygrad_peft.nn.virtual import Front, NoPrefix, NoPrompt
from tinygrad_peft.ops.loss import IGNORE_INDEX
from tinygrad_peft.tensor import Tensor

__all__ = ["Transformer"]


class Transformer(Module):
    """Token ids to logits, class logits, or hidden states.

    `init` makes the weights: `Init(seed)` by default, `Skeleton()` for shapes alone.
    """

    embed_tokens: TokenEmbedding
    prompt: Prompt
    prefix: Prefix
    embed_norm: Norm | None
    blocks: list[BlockLike]
    final_norm: Norm | None
    pooler: Affine | None
    classifier: Affine | None
    lm_head: Affine | None

    adapted: bool = False  # a recipe is applied
    name_or_path: str | None = None  # the source it was loaded from
    revision: str | None = None  # the source's commit on the hub
    new_modules: tuple[str, ...] = ()  # the parts of a head that no checkpoint has

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
        self.dropout = Dropout(config.embedding_rate)
        self.blocks = [*(Block(config, init) for _ in range(config.num_hidden_layers))]
        self.final_norm = None if post else make_norm(config, init)
        self.pooler = Linear(width, width, init=init) if config.pooler else None
        self.classifier = None
        self.lm_head = None
        if config.head == "classification":
            bias = config.classifier_bias
            self.classifier = Linear(width, config.num_labels, bias=bias, init=init)
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
        prompt_lengths: IntArray | None = None,
    ) -> Tensor:
        """Map ids (B, T) to logits (B, T, V), class logits (B, C), or hidden states (B, T, D).

        A prompt of N virtual tokens comes first: (B, N + T, V) or (B, N + T, D).

        `attention_mask` (B, T), or (B, cached + T) with a cache, is nonzero for a real token and
        zero for padding. `positions` (T,) or (B, T) count the tokens alone, on from the cache by
        default. `prompt_lengths` (B,) counts the real tokens of each row's prompt, those still to
        come included, for methods that act there (`Context.roles`); by default the prompt is all.

        Raises:
            TokenError: ids that are not a matrix or outside the vocabulary, more tokens than
                positions, or a row to be averaged that is all padding.
            ShapeError: a mask, token types or prompt lengths of another shape.
        """
        inputs = Inputs(
            self._front(),
            input_ids,
            attention_mask,
            token_type_ids,
            positions,
            cache,
            prompt_lengths,
        )
        hidden = self._hidden_states(inputs)
        if self.classifier is not None:
            pooled = self._pool(inputs, hidden)
            # No dropout here in transformers' classifiers on the last token.
            if self.config.pooling != "last":
                pooled = self.dropout(pooled, self.config.classifier_rate)
            return self.classifier(pooled)
        return hidden if self.lm_head is None else self.lm_head(hidden)

    def hidden_states(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
        prompt_lengths: IntArray | None = None,
    ) -> Tensor:
        """Map ids (B, T) to the last block's output, after the final norm: (B, N + T, D).

        The arguments, and the errors raised, are those of a call. N is the length of a prompt of
        virtual tokens, 0 without one.
        """
        inputs = Inputs(
            self._front(),
            input_ids,
            attention_mask,
            token_type_ids,
            positions,
            cache,
            prompt_lengths,
        )
        return self._hidden_states(inputs)

    def pooled(
        self, input_ids: IntArray, attention_mask: BoolArray | IntArray | None = None
    ) -> Tensor:
        """Map ids (B, T) to one vector per text, the classifier's input: (B, D).

        Raises TokenError as a call does.
        """
        inputs = Inputs(self._front(), input_ids, attention_mask)
        return self._pool(inputs, self._hidden_states(inputs))

    def _front(self) -> Front:
        """Compute what stands in front of the tokens of one pass."""
        return Front(self.prompt(), self.prefix())

    def _hidden_states(self, inputs: Inputs) -> Tensor:
        positions = inputs.all_positions()
        self._check_positions(positions)
        x = self._embed(inputs, positions)
        context = Context(
            causal=self.config.causal,
            roles=inputs.roles(),
            keys=inputs.keys(),
            rotary=None if self.angles is None else self.angles(positions, x.dtype),
        )
        cache, prefix = inputs.cache, inputs.front.prefix
        for i, block in enumerate(self.blocks):
            own_cache = cache[i] if cache else None
            own_prefix = None if prefix is None else prefix.layers[i]
            x = block(x, context.in_layer(own_cache, own_prefix))
        return x if self.final_norm is None else self.final_norm(x)

    def _embed(self, inputs: Inputs, positions: IntArray) -> Tensor:
        """Embed the tokens with their positions and types, behind the prompt: (B, N + T, D)."""
        x = self.embed_tokens(inputs.ids)
        if inputs.starts:
            x = inputs.front.before(x)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        if self.embed_types is not None:
            x = x + self.embed_types(inputs.token_types)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return self.dropout(x)

    def _pool(self, inputs: Inputs, hidden: Tensor) -> Tensor:
        """Pool as the config says, and apply the pooler after "cls": (B, N + T, D) -> (B, D).

        Raises TokenError where a row is all padding.
        """
        pooling = self.config.pooling
        pooled = POOLINGS[pooling](inputs, hidden, self.config.pad_token_id)
        if pooling != "cls" or self.pooler is None or self.config.sentence_transformers:
            return pooled
        return self.pooler(pooled).tanh()

    def loss(
        self,
        input_ids: IntArray,
        labels: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Compute the mean cross-entropy, a scalar.

        A classifier takes labels (B,). A language model takes labels (B, T), -100 for those to
        ignore, and predicts each from the position before it, the first from a prompt's last
        virtual token; it never makes all its logits. A row's prompt (`Context.roles`) is its real
        tokens before the first label, at least one.

        Raises:
            ConfigError: the model has no head, or one for regression or several labels at once.
            TokenError: all labels are ignored, or one is outside the classes.
        """
        if self.classifier is not None:
            require_one_class(self.config)
            logits = self(input_ids, attention_mask)
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if self.lm_head is None:
            raise ConfigError("a bare encoder has no loss: give it a head with with_classifier()")
        if labels.shape != input_ids.shape:
            raise TokenError(f"labels {labels.shape} for input ids {input_ids.shape}")
        lengths = _tokens_before(labels, attention_mask)
        inputs = Inputs(self._front(), input_ids, attention_mask, prompt_lengths=lengths)
        hidden = self._hidden_states(inputs)
        targets = inputs.front.targets(labels)
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
        generation: Generation | None = None,
        *,
        attention_mask: BoolArray | IntArray | None = None,
        on_token: Callable[[IntArray], None] | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> IntArray:
        """Continue the prompts (B, T): int64 (B, T + new). See `tinygrad_peft.nn.generate`."""
        return generate(
            self,
            input_ids,
            generation,
            attention_mask=attention_mask,
            on_token=on_token,
            **settings,
        )

    def with_classifier(
        self, labels: int | Sequence[str], *, pooling: str | None = None, seed: int = 0
    ) -> None:
        """Replace the head by a new classification head.

        `labels` are the classes' names or their number. `pooling` is "cls" (the first token,
        through the pooler where the model has one), "mean", or "last" (the last token that is not
        padding). By default it is the head of transformers' class: for an encoder "cls" with a
        pooler, a new one where the checkpoint lacks it; for a decoder "last", without a bias.
        `new_modules` names what is new. Its weights are drawn from `seed`, N(0, 0.02²), and its
        biases are zero.

        Raises ConfigError for another pooling, and for no labels.
        """
        has_pooler = self.pooler is not None and "pooler" not in self.new_modules
        config = dataclasses.replace(self.config, pooler=has_pooler)
        self.config = config = classifier_config(config, labels, pooling)
        width, init = config.hidden_size, Init((seed, 1), next(self.parameters()).dtype)
        self.lm_head = None
        self.classifier = new_dense(width, config.num_labels, init, bias=config.classifier_bias)
        self.new_modules = ("classifier",)
        if not has_pooler:
            self.pooler = new_dense(width, width, init) if config.pooler else None
            self.new_modules += ("pooler",) if config.pooler else ()

    def note_untied(self) -> None:
        """Set `tie_word_embeddings` to False where the output layer has its own weight by now."""
        ends = self.embed_tokens, self.lm_head
        if self.config.head == "lm" and self.config.tie_word_embeddings:
            weights = {id(getattr(end, "weight", end)) for end in ends}
            self.config = dataclasses.replace(self.config, tie_word_embeddings=len(weights) == 1)

    @property
    def num_virtual_tokens(self) -> int:
        """The number of positions that a prompt and a prefix take in front of every text."""
        front = self._front()
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


def _tokens_before(labels: IntArray, attention_mask: BoolArray | IntArray | None) -> IntArray:
    """Count the real tokens before each row's first label, all if it has none: (B,).

    At least one: nothing stands before a text's first token, so no label makes it a continuation.
    """
    before = np.cumsum(labels != IGNORE_INDEX, axis=1) == 0  # (B, T)
    real = before if attention_mask is None else before & (np.asarray(attention_mask) != 0)
    return np.asarray(np.maximum(real.sum(axis=1), 1))
