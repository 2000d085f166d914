"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190, section 4.2, eq. 3).

    attention(q, [Pk; k], [Pv; v])      in every layer; [;] joins along the tokens

    Pk, Pv (P, K, D)  the layer's virtual keys and values, the same for every text

The keys and values of all layers are the columns of one matrix P (P, 2·L·K·D), in the order (layer,
key or value, head, element), as Hugging Face PEFT stores it. It is trained directly, or, as the
paper recommends in section 4.3, reparameterised by a network of width h:

    P = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂       E (P, K·D),  W₁ (h, K·D),  W₂ (2·L·K·D, h)

The keys get no rotary embedding: the trained keys are used as they are. The tokens' positions begin
after the prefix.
"""

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import (
    Init,
    Linear,
    Module,
    Parameter,
    Prefix,
    TransformerConfig,
    VirtualKeys,
)
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_prefix.config import PrefixTuningConfig

__all__ = ["ProjectedPrefix", "TrainedPrefix"]

# Small beside the keys and values of real tokens, so that a new prefix adds next to nothing; not
# zero, since equal virtual tokens would stay equal.
START_STD = 0.02


class TrainedPrefix(Module):
    """A prefix that is trained directly, in front of the base's own."""

    base_layer: Prefix

    def __init__(self, base: Prefix, matrix: Array, model: TransformerConfig) -> None:
        """Start from `matrix` (P, 2·L·K·D)."""
        self.base_layer = base
        self.model = model
        self.prompt_embeddings = Parameter(matrix)  # (P, 2·L·K·D)

    @classmethod
    def drawn(
        cls, base: Prefix, config: PrefixTuningConfig, model: TransformerConfig, init: Init
    ) -> "TrainedPrefix":
        """Initialise a prefix from N(0, 0.02²), or with zeros."""
        shape = config.num_virtual_tokens, columns(model)
        zero = config.init_weights == "zero"
        return cls(base, init.zeros(*shape) if zero else init.normal(*shape, std=START_STD), model)

    def __call__(self) -> VirtualKeys:
        return prepended(self.prompt_embeddings, self.base_layer, self.model)


class ProjectedPrefix(Module):
    """A prefix reparameterised by a network, in front of the base's own."""

    base_layer: Prefix

    def __init__(
        self, base: Prefix, config: PrefixTuningConfig, model: TransformerConfig, init: Init
    ) -> None:
        width = key_width(model)
        hidden = config.encoder_hidden_size or width
        self.base_layer = base
        self.model = model
        self.embedding = Parameter(init.normal(config.num_virtual_tokens, width, std=1.0))
        self.up_proj = Linear(width, hidden, init=init)
        self.down_proj = Linear(hidden, columns(model), init=init)
        if config.init_weights == "zero":
            self.down_proj.weight.data = init.zeros(columns(model), hidden)

    def __call__(self) -> VirtualKeys:
        return prepended(self.matrix(), self.base_layer, self.model)

    def matrix(self) -> Tensor:
        """Compute the prefix (P, 2·L·K·D)."""
        return self.down_proj(self.up_proj(self.embedding).tanh())

    def flattened(self) -> TrainedPrefix:
        """Return the current prefix without the network, as Hugging Face PEFT stores it."""
        with no_grad():
            return TrainedPrefix(self.base_layer, self.matrix().data, self.model)


def prepended(matrix: Tensor, base: Prefix, model: TransformerConfig) -> VirtualKeys:
    """Prepend the keys and values in a matrix (P, 2·L·K·D) to the base's."""
    layers, heads = model.num_hidden_layers, model.num_key_value_heads
    split = matrix.reshape(len(matrix), layers, 2, heads, model.head_dim)
    own = [(split[:, i, 0], split[:, i, 1]) for i in range(layers)]  # (P, K, D) each
    inner = base()
    return VirtualKeys(own) if inner is None else inner.behind(own)


def key_width(model: TransformerConfig) -> int:
    """Return K·D, less than the model's width where queries share keys."""
    return model.num_key_value_heads * model.head_dim


def columns(model: TransformerConfig) -> int:
    """Return 2·L·K·D."""
    return 2 * model.num_hidden_layers * key_width(model)
