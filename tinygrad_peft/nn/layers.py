"""The layers that hold weights, and dropout."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, IntArray, Shape
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.init import Init
from tinygrad_peft.nn.module import Module, Parameter
from tinygrad_peft.tensor import Tensor

__all__ = ["Dropout", "Embedding", "LayerNorm", "Linear", "RMSNorm", "no_dropout", "seed_dropout"]


class Linear(Module):
    """y = x Wᵀ + b: (..., in_features) -> (..., out_features), with W (out, in) and b (out,).

    W is initialised Kaiming-uniform (bound 1/√in), b with zeros.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        init: Init | None = None,
    ) -> None:
        init = init or Init()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(init.kaiming_uniform(out_features, in_features))
        self.bias = Parameter(init.zeros(out_features)) if bias else None

    @classmethod
    def of(cls, weight: Parameter, bias: Parameter | None = None) -> "Linear":
        """Make a layer of given weights, which are shared: W (out, in), b (out,)."""
        layer = cls.__new__(cls)
        layer.out_features, layer.in_features = weight.shape
        layer.weight = weight
        layer.bias = bias
        return layer

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def dense_weight(self) -> Array:
        """W (out, in): the layer's own array."""
        return self.weight.data


class Embedding(Module):
    """A row of W (num_embeddings, embedding_dim) for each id: (...) -> (..., embedding_dim)."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, init: Init | None = None
    ) -> None:
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = Parameter((init or Init()).normal(num_embeddings, embedding_dim, std=0.02))

    def __call__(self, ids: IntArray) -> Tensor:
        return F.embedding(self.weight, ids)


class LayerNorm(Module):
    """(x - mean) / √(var + eps) ⊙ w + b over the last axis."""

    def __init__(self, size: int, eps: float = 1e-5, *, init: Init | None = None) -> None:
        init = init or Init()
        self.eps = eps
        self.weight = Parameter(init.ones(size))
        self.bias = Parameter(init.zeros(size))

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """x / √(mean x² + eps) ⊙ w over the last axis."""

    def __init__(self, size: int, eps: float = 1e-6, *, init: Init | None = None) -> None:
        self.eps = eps
        self.weight = Parameter((init or Init()).ones(size))

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)


_dropping: ContextVar[bool] = ContextVar("dropping", default=True)


@contextmanager
def no_dropout() -> Iterator[None]:
    """Drop nothing within the block, or within the function that it decorates.

    For the calling thread or asyncio task alone, while others may train the same model.
    """
    token = _dropping.set(False)
    try:
        yield
    finally:
        _dropping.reset(token)


class Dropout(Module):
    """x / (1 - rate) for a random share 1 - rate of the elements in training, 0 for the others.

    Each layer draws from its own generator (see `seed_dropout`), and nothing within `no_dropout`.
    """

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"dropout rate: expected at least 0 and below 1, got {rate}")
        self.rate = rate
        self.rng = np.random.default_rng(0)

    def __call__(self, x: Tensor, rate: float | None = None) -> Tensor:
        rate = self.rate if rate is None else rate
        keep = self.keep(x.shape, rate)
        return x if keep is None else F.dropout(x, keep, rate)

    def keep(self, shape: Shape, rate: float | None = None) -> BoolArray | None:
        """Draw the elements to keep of an array of that shape. None, outside training: all.

        `rate` takes the place of the layer's own.
        """
        rate = self.rate if rate is None else rate
        if not self.training or not rate or not _dropping.get():
            return None
        kept: BoolArray = self.rng.random(shape, dtype=np.float32) >= rate
        return kept


def seed_dropout(model: Module, seed: int) -> None:
    """Seed each Dropout's generator with (seed, its number in the order of the model)."""
    dropouts = [m for _, m in model.named_modules() if isinstance(m, Dropout)]
    for place, module in enumerate(dropouts):
        module.rng = np.random.default_rng((seed, place))
