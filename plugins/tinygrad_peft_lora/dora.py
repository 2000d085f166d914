"""DoRA: weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv 2402.09353, eq. 5).

    y = b + m/n ⊙ (W₀ + s B A) x,        n = ‖W₀ + s B A‖, per row

    m  (out,)  the rows' magnitudes, trained; they start at n, and training begins at the base
    n  (out,)  their norms, which follow A and B and carry no gradient (section 4.3)

B A is never built: with rows w of W₀ and β of B,

    ‖w + s β A‖² = ‖w‖² + 2 s β (A wᵀ) + s² β (A Aᵀ) βᵀ

‖w‖² depends on the frozen base alone and is cached (`norms`). Dropout spares the base's own part:
with x̃ the input after dropout, y = b + W₀ (x - x̃) + m/n ⊙ (W₀ + s B A) x̃, as in PEFT.

Merged, the layer is the plain m/n ⊙ (W₀ + s B A).
"""

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Affine, Init, Linear, Module, Parameter, times_weight, weight_of
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.layer import LoraLinear, lora_affine
from tinygrad_peft_lora.norms import Norms

__all__ = ["DoraLinear"]


class DoraLinear(LoraLinear):
    """m/n ⊙ (W + s B A) x + b on any affine layer: (..., in_features) -> (..., out_features).

    Without `from_base`, m starts at one and W is not read.
    """

    def __init__(
        self, base: Affine, config: LoraConfig, path: str, init: Init, *, from_base: bool = True
    ) -> None:
        super().__init__(base, config, path, init)
        self._norms = Norms()
        start = self.norms() if from_base else init.ones(self.out_features)
        self.lora_magnitude_vector = Parameter(start)

    def __call__(self, x: Tensor) -> Tensor:
        keep = self.dropout.keep(x.shape)
        dropped = x if keep is None else F.dropout(x, keep, self.dropout.rate)
        weight, bias = self._without_bias()
        a, b = self.lora_A.weight, self.lora_B.weight
        y = lora_affine(weight, dropped, a, b, self.scaling) * self.ratio()
        y = y if bias is None else y + bias
        return y if keep is None else y + weight(x - dropped)

    def _without_bias(self) -> tuple[Affine, Tensor | None]:
        """Split the base into W and b."""
        base = self.base_layer
        if isinstance(base, Linear):
            return Linear.of(base.weight), base.bias
        nothing = Tensor(np.zeros((1, self.in_features), self.lora_A.weight.dtype))
        bias = base(nothing).reshape(-1)
        return _WithoutBias(base, bias), bias

    def ratio(self) -> Tensor:
        """Return m/n (out,)."""
        return self.lora_magnitude_vector / Tensor(self.norms())

    def norms(self) -> Array:
        """Return n (out,)."""
        a, b, base = self.lora_A.weight.data, self.lora_B.weight.data, self.base_layer
        return self._norms(
            base, lambda: weight_of(base), lambda: times_weight(base, a).T, a, b, self.scaling
        )

    def merge(self) -> Linear | None:
        """Return the plain layer m/n ⊙ (W + s B A); None where the base is not plain."""
        merged = super().merge()
        if merged is not None:
            merged.weight.data *= self.ratio().data[:, None]
        return merged


class _WithoutBias(Module):
    """An affine layer without its bias."""

    def __init__(self, base: Affine, bias: Tensor) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base, self.bias = base, bias

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(x) - self.bias
