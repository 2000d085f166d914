"""An affine layer other than Linear."""

from tinygrad_peft.nn import Linear, Module
from tinygrad_peft.tensor import Tensor


class Doubled(Module):
    """2 (W x + b)."""

    def __init__(self, base: Linear) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base = base

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(x) * 2.0
