"""How much memory the weights and the training of a recipe take, from sizes alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from tinygrad_peft.nn import Affine, Skeleton, Transformer, TransformerConfig
from tinygrad_peft.peft.sites import capture_seams

__all__ = ["Memory", "estimate_memory"]

# A 4-bit code, the 8-bit scale of each block of 64, the float32 scale of each 256 of those scales.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


@dataclass(frozen=True)
class Memory:
    """Bytes, without activations.

    weights: of all parameters, by how they are stored: in "float32", in "float16", and in "nf4",
        where the matrices of all affine layers but the head take 4.127 bits a weight and the rest
        is float32; "nf4_float16" has the rest in float16.
    gradients: 4 for each trained parameter.
    optimizer: AdamW's two moments, 2 x 4 for each trained parameter.
    """

    weights: Mapping[str, int]
    gradients: int
    optimizer: int

    @property
    def training(self) -> dict[str, int]:
        """Weights, gradients and optimiser together, by how the weights are stored."""
        return {k: v + self.gradients + self.optimizer for k, v in self.weights.items()}


def estimate_memory(model: TransformerConfig, trainable: int, total: int) -> Memory:
    """The memory of a model of that shape, with parameters as `count_recipe` counts them."""
    quantized = _quantizable(model)
    rest, codes = total - quantized, quantized * NF4_BITS / 8
    weights = {
        "float32": 4 * total,
        "float16": 2 * total,
        "nf4": round(codes + 4 * rest),
        "nf4_float16": round(codes + 2 * rest),
    }
    return Memory(weights, gradients=4 * trainable, optimizer=2 * 4 * trainable)


def _quantizable(model: TransformerConfig) -> int:
    """The sizes of the matrices of all affine layers but the head."""
    seams = capture_seams(Transformer(model, Skeleton()))
    layers = [s.module for s in seams if isinstance(s.module, Affine) and not s.is_head]
    return sum(layer.in_features * layer.out_features for layer in layers)
