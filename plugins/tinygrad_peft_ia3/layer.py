"""(IA)³: learned factors for inner activations (Liu et al. 2022, arXiv 2205.05638, section 3.3).

    softmax(Q (l_k ⊙ Kᵀ) / √d_k) (l_v ⊙ V)        in attention
    (l_ff ⊙ γ(x W₁)) W₂                           in the feed-forward layer, γ its nonlinearity

So l_k and l_v multiply the outputs of the key and value layers, and l_ff the input of the second
feed-forward layer. On an affine layer with the weight W (out, in):

    y = l ⊙ (W x + b),   l (out, 1)        dl = Σ g ⊙ (W x + b),   dx = Wᵀ (l ⊙ g)
    y = W (l ⊙ x) + b,   l (1, in)         dl = Σ x ⊙ Wᵀ g,        dx = l ⊙ Wᵀ g

with g the gradient of y, and Σ over all rows. All of l starts at one, so that training begins at
the base model. Merged, the layer is a plain one: its rows, and its bias, or its columns times l.
"""

from tinygrad_peft.nn import Affine, Init, Linear, Module, Parameter
from tinygrad_peft.tensor import Tensor

__all__ = ["IA3Linear"]


class IA3Linear(Module):
    """l ⊙ base(x), or base(l ⊙ x): (..., in_features) -> (..., out_features).

    The vector l is (out_features, 1) or (1, in_features).
    """

    base_layer: Affine

    def __init__(self, base: Affine, init: Init, *, on_input: bool, ones: bool = True) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.on_input = on_input
        self.base_layer = base
        shape = (1, base.in_features) if on_input else (base.out_features, 1)
        self.ia3_l = Parameter(init.ones(*shape) if ones else init.normal(*shape, std=1.0))

    def __call__(self, x: Tensor) -> Tensor:
        factors = self.ia3_l.reshape(-1)
        return self.base_layer(x * factors) if self.on_input else self.base_layer(x) * factors

    def merge(self) -> Linear | None:
        """Return the plain layer with the same output; None where the base is not plain."""
        base = self.base_layer
        if not isinstance(base, Linear):
            return None
        factors = self.ia3_l.data.astype(base.weight.dtype)
        weight, bias = Parameter(base.weight.data * factors), base.bias
        if bias is not None:
            bias = Parameter(bias.data * (1 if self.on_input else factors[:, 0]))
        return Linear.of(weight, bias)
