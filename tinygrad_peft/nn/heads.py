"""Classification heads: how a text becomes one vector, and the head that transformers builds.

Axes: B rows, N virtual tokens of a prompt, T tokens, D the width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tinygrad_peft.errors import ConfigError, TokenError
from tinygrad_peft.nn.config import Pooling, TransformerConfig
from tinygrad_peft.nn.init import Init
from tinygrad_peft.nn.inputs import Inputs
from tinygrad_peft.nn.layers import Linear
from tinygrad_peft.tensor import Tensor

__all__ = ["POOLINGS", "classifier_config", "new_dense", "require_one_class"]


def first_position(inputs: Inputs, hidden: Tensor, _pad: int | None) -> Tensor:
    """Take the first position, which may be a virtual token, as in Hugging Face PEFT."""
    rows = hidden.shape[0]
    return hidden[np.arange(rows), inputs.front.first(rows)]


def mean(inputs: Inputs, hidden: Tensor, _pad: int | None) -> Tensor:
    """Average the real tokens."""
    hidden = hidden[:, inputs.front.tokens :] if inputs.front.tokens else hidden
    real = inputs.mask
    if real is None:
        return hidden.mean(axis=1)
    _refuse_padding_alone(inputs)
    weights = real / real.sum(axis=1, keepdims=True)
    return (hidden * Tensor(weights[:, :, None].astype(hidden.dtype))).sum(axis=1)


def last_token(inputs: Inputs, hidden: Tensor, pad: int | None) -> Tensor:
    """Take the last real token that is not `pad`; in a row of padding alone, the first.

    transformers finds it by the ids alone. The mask decides as well here, so that batches need no
    padding token.
    """
    _refuse_padding_alone(inputs)
    rows, tokens = inputs.ids.shape
    real = np.ones((rows, tokens), bool) if inputs.mask is None else inputs.mask[:, -tokens:]
    real = real if pad is None else real & (inputs.ids != pad)
    place = np.where(real.any(axis=1), tokens - 1 - real[:, ::-1].argmax(axis=1), 0)  # (B,)
    return hidden[np.arange(rows), hidden.shape[1] - tokens + place]


def _refuse_padding_alone(inputs: Inputs) -> None:
    if inputs.mask is None or (real := inputs.mask.any(axis=1)).all():
        return
    raise TokenError(f"row {int(real.argmin())} of the attention mask is all padding")


# (inputs, hidden states (B, N + T, D), pad_token_id) -> (B, D)
POOLINGS: Mapping[Pooling, Callable[[Inputs, Tensor, int | None], Tensor]] = {
    "cls": first_position,
    "mean": mean,
    "last": last_token,
}


def classifier_config(
    config: TransformerConfig, labels: int | Sequence[str], pooling: str | None
) -> TransformerConfig:
    """Return the config of the model with a classification head in place of its own.

    Without `pooling` the head is the checkpoint's: a sentence-transformers folder keeps its own
    pooling, and others get the head of transformers' class, on a decoder's last token, or on an
    encoder's first, through a pooler.

    Raises ConfigError for another pooling, and for no labels.
    """
    if pooling not in (None, *POOLINGS):
        known = ", ".join(map(repr, POOLINGS))
        raise ConfigError(f"pooling: expected one of {known}, got {pooling!r}")
    names = () if isinstance(labels, int) else tuple(labels)
    config = replace(
        config,
        head="classification",
        num_labels=labels if isinstance(labels, int) else len(names),
        label_names=names,
        problem_type=None,
    )
    usual = config.pooling if config.sentence_transformers else config.usual_pooling
    chosen = next((known for known in POOLINGS if known == pooling), usual)
    new_pooler = pooling is None and not config.causal and not config.sentence_transformers
    has_pooler = config.pooler or new_pooler
    return replace(config, pooling=chosen, pooler=has_pooler)


def require_one_class(config: TransformerConfig) -> None:
    """Raise ConfigError for a head whose texts do not have one class of several each.

    Under a softmax the loss of a head with one output would always be 0.
    """
    if config.objective == "single_label_classification" and config.num_labels > 1:
        return
    outputs = "1 output" if config.num_labels == 1 else f"{config.num_labels} outputs"
    raise ConfigError(
        f"a head for {config.objective} with {outputs}: only heads that choose one class of "
        "several are trained and evaluated"
    )


def new_dense(inputs: int, outputs: int, init: Init, *, bias: bool = True) -> Linear:
    """Make a layer as transformers starts one: weights N(0, 0.02²), biases 0."""
    dense = Linear(inputs, outputs, bias=bias, init=init)
    dense.weight.data = init.normal(outputs, inputs, std=0.02)
    return dense
