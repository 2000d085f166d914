"""LoRA on an embedding, whose weight W₀ (V, d) has one row per id.

    y = W₀[i] + s (B A[:, i])ᵀ

    A  (r, V)  starts at zero
    B  (d, r)  starts at N(0, 1): the reverse of an affine layer

With DoRA (see `dora`), y is multiplied by m/n, with n (d,) the norms of the columns. Merged, the
layer is the plain W₀ + s (B A)ᵀ. As in PEFT, there is neither dropout nor a bias.
"""

import copy

import numpy as np

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import PeftError, failures
from tinygrad_peft.nn import Embedding, Init, Parameter, TokenEmbedding
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.layer import Mergeable
from tinygrad_peft_lora.norms import Norms

__all__ = ["DoraEmbedding", "LoraEmbedding"]


class LoraEmbedding(Mergeable):
    """base(ids) + s (B A[:, ids])ᵀ on any embedding: (...) -> (..., embedding_dim).

    Raises PeftError for settings that apply to affine layers only.
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
        """Return the plain embedding W₀ + ΔW; None where the base is not plain."""
        if not isinstance(self.base_layer, Embedding):
            return None
        merged = copy.copy(self.base_layer)
        weight = merged.weight.data
        merged.weight = Parameter(weight + self.delta().astype(weight.dtype))
        return merged


class DoraEmbedding(LoraEmbedding):
    """m/n ⊙ (W + s (B A)ᵀ)[ids] on any embedding: (...) -> (..., embedding_dim).

    Without `from_base`, m starts at one and W is not read.
    """

    def __init__(
        self,
        base: TokenEmbedding,
        config: LoraConfig,
        path: str,
        init: Init,
        *,
        from_base: bool = True,
    ) -> None:
        super().__init__(base, config, path, init)
        self._norms = Norms()
        start = self.norms() if from_base else init.ones(self.embedding_dim)
        self.lora_magnitude_vector = Parameter(start)

    def __call__(self, ids: IntArray) -> Tensor:
        return super().__call__(ids) * self.ratio()

    def ratio(self) -> Tensor:
        """Return m/n (embedding_dim,)."""
        return self.lora_magnitude_vector / Tensor(self.norms())

    def norms(self) -> Array:
        """Return n (embedding_dim,)."""
        a, b = self.lora_embedding_A.data, self.lora_embedding_B.data
        table = self._table
        return self._norms(
            self.base_layer, lambda: table().T, lambda: (a @ table()).T, a, b, self.scaling
        )

    def _table(self) -> Array:
        """Return the base's W (num_embeddings, embedding_dim)."""
        with no_grad():
            return self.base_layer(np.arange(self.num_embeddings)).data

    def merge(self) -> Embedding | None:
        """Return the plain embedding m/n ⊙ (W + ΔW); None where the base is not plain."""
        merged = super().merge()
        if merged is not None:
            merged.weight.data *= self.ratio().data
        return merged


def _refuse(config: LoraConfig, path: str) -> None:
    start = config.init_lora_weights
    rules = {f"init_lora_weights={start!r}": config.leaves_residual, "lora_bias": config.lora_bias}
    if found := failures(rules):
        raise PeftError(f"{path}: {', '.join(found)} needs an affine layer, got an embedding")
