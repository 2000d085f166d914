"""LoRA on an embedding, whose weight W₀ (V, d) has a row for each id.

    y = W₀[i] + s (B A[:, i])ᵀ

    A  (r, V)  starts at zero
    B  (d, r)  starts at N(0, 1): the other way round than in an affine layer

With DoRA (see `dora`), y = m/n ⊙ that, of a norm n (d,) of each of W₀'s columns. Merged, the layer
is the plain W₀ + s (B A)ᵀ. As in PEFT nothing is dropped, and there is no bias.
"""

import copy

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Embedding, Init, Parameter, TokenEmbedding
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.layer import Mergeable
from tinygrad_peft_lora.norms import Norms

__all__ = ["DoraEmbedding", "LoraEmbedding"]


class LoraEmbedding(Mergeable):
    """base(ids) + s (B A[:, ids])ᵀ on any embedding: (...) -> (..., embedding_dim).

    Raises PeftError for settings that an embedding has no place for.
    """

    base_layer: TokenEmbedding

    def __init__(self, base: TokenEmbedding, config: LoraConfig, path: str, init: Init) -> None:
        _refuse(config, path)
        rank = config.rank(path)
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.scaling = config.scaling(path)
        self.base_layer = base
        shape_a, shape_b = (rank, self.num_embeddings), (self.embedding_dim, rank)
        a = init.zeros(*shape_a) if config.init_lora_weights else init.normal(*shape_a, std=1)
        self.lora_embedding_A = Parameter(a)
        self.lora_embedding_B = Parameter(init.normal(*shape_b, std=1))

    def __call__(self, ids: IntArray) -> Tensor:
        low = F.embedding(self.lora_embedding_A.transpose(), ids)  # (..., r)
        return self.base_layer(ids) + F.linear(low, self.lora_embedding_B) * self.scaling

    def delta(self) -> Array:
        """ΔW = s (B A)ᵀ: (num_embeddings, embedding_dim)."""
        return self.scaling * (self.lora_embedding_B.data @ self.lora_embedding_A.data).T

    def merge(self) -> Embedding | None:
        """The plain embedding W₀ + ΔW; None on a base that is no plain one itself."""
        if not isinstance(self.base_layer, Embedding):
            return None
        merged = copy.copy(self.base_layer)
        weight = merged.weight.data
        merged.weight = Parameter(weight + self.delta().astype(weight.dtype))
        return merged


class DoraEmbedding(LoraEmbedding):
    """m/n ⊙ (W + s (B A)ᵀ)[ids] on any embedding: (...) -> (..., embedding_dim)."""

    def __init__(self, base: TokenEmbedding, config: LoraConfig, path: str, init: Init) -> None:
        super().__init__(base, config, path, init)
        self._norms = Norms()
        self.lora_magnitude_vector = Parameter(self.norms())

    def __call__(self, ids: IntArray) -> Tensor:
        return super().__call__(ids) * self.ratio()

    def ratio(self) -> Tensor:
        """m/n: (embedding_dim,)."""
        return self.lora_magnitude_vector / Tensor(self.norms())

    def norms(self) -> Array:
        """n: (embedding_dim,)."""
        a, b = self.lora_embedding_A.data, self.lora_embedding_B.data
        table = self._table
        return self._norms(
            self.base_layer, lambda: table().T, lambda: (a @ table()).T, a, b, self.scaling
        )

    def _table(self) -> Array:
        """W (num_embeddings, embedding_dim) of the base."""
        with no_grad():
            return self.base_layer(np.arange(self.num_embeddings)).data

    def merge(self) -> Embedding | None:
        """The plain embedding m/n ⊙ (W + ΔW); None on a base that is no plain one itself."""
        merged = super().merge()
        if merged is not None:
            merged.weight.data *= self.ratio().data
        return merged


def _refuse(config: LoraConfig, path: str) -> None:
    if config.is_taken_out:
        start = config.init_lora_weights
        raise PeftError(f"{path} is an embedding: init_lora_weights={start!r} is of affine layers")
    if config.lora_bias:
        raise PeftError(f"{path} is an embedding: there is no place for lora_bias")
