"""LoRA that starts as a part of W₀, on the residual W₀ - s B₀ A₀ (see `initialisation`)."""

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import Affine, Init, Linear, Parameter, weight_of
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.initialisation import leading_part, require_rank
from tinygrad_peft_lora.layer import LoraLinear, lora_affine

__all__ = ["ResidualLora"]


class ResidualLora(LoraLinear):
    """base(x) - s B₀ A₀ x + s B A dropout(x): (..., in_features) -> (..., out_features).

    Without `from_base`, all four start at zero and W₀ is not read.
    """

    def __init__(
        self, base: Affine, config: LoraConfig, path: str, init: Init, *, from_base: bool = True
    ) -> None:
        super().__init__(base, config, path, init)
        rank, start = config.rank(path), str(config.start)
        require_rank((self.out_features, self.in_features), rank, start)
        if from_base:
            a, b = leading_part(weight_of(base), rank, self.scaling, start)
            self.lora_A.weight.data, self.lora_B.weight.data = a.copy(), b.copy()
        else:
            a, b = init.zeros(rank, self.in_features), init.zeros(self.out_features, rank)
            self.lora_A.weight.data = init.zeros(rank, self.in_features)
            self.lora_B.weight.data = init.zeros(self.out_features, rank)
        self.start_A = Parameter(a, requires_grad=False)
        self.start_B = Parameter(b, requires_grad=False)

    def __call__(self, x: Tensor) -> Tensor:
        keep = self.dropout.keep(x.shape)
        if keep is None:
            return lora_affine(self.base_layer, x, *self.factors(), self.scaling)
        # B₀ A₀ belongs to the base, whose input has no dropout.
        rest = lora_affine(self.base_layer, x, self.start_A, -self.start_B, self.scaling)
        dropped = F.dropout(x, keep, self.dropout.rate)
        return rest + self.lora_B(self.lora_A(dropped)) * self.scaling

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return [A; A₀] (2 r, in) and [B, -B₀] (out, 2 r)."""
        a = F.concatenate([self.lora_A.weight, self.start_A])
        return a, F.concatenate([self.lora_B.weight, -self.start_B], axis=1)

    def delta(self) -> Array:
        """ΔW = s (B A - B₀ A₀): (out, in)."""
        with no_grad():
            a, b = self.factors()
        return self.scaling * (b.data @ a.data)

    def flattened(self) -> LoraLinear:
        """Return the plain LoRA of twice the rank with the same output."""
        with no_grad():
            a, b = self.factors()
        plain = LoraLinear.__new__(LoraLinear)
        plain.in_features, plain.out_features = self.in_features, self.out_features
        plain.scaling, plain.base_layer = self.scaling, self.base_layer
        plain.lora_A, plain.lora_B = Linear.of(Parameter(a.data)), Linear.of(Parameter(b.data))
        plain.dropout, plain.training = self.dropout, self.training
        return plain
