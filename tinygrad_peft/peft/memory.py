"""How much memory the weights and the training of a recipe take, from sizes alone.

Each trained parameter takes 16 bytes in float32, 4 for itself, 4 for its gradient and 2 x 4 for
AdamW's moments, however the frozen weights are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tinygrad_peft.nn import Affine, Skeleton, Transformer, TransformerConfig
from tinygrad_peft.peft.sites import capture_seams

__all__ = ["Memory", "estimate_full_memory", "estimate_memory"]

# A 4-bit code, the 8-bit scale of each block of 64, the float32 scale of each 256 of those scales.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


@dataclass(frozen=True)
class Memory:
    """Bytes, without activations.

    weights: of all parameters, frozen and trained.
    gradients: of the trained ones.
    optimizer: AdamW's two moments for each trained one.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def training(self) -> int:
        """Weights, gradients and optimiser together."""
        return self.weights + self.gradients + self.optimizer


def estimate_memory(model: TransformerConfig, trainable: int, total: int) -> Mapping[str, Memory]:
    """The memory of a model of that shape, by how the frozen weights are stored.

    In "float32", in "float16", and in "nf4", where the matrices of all affine layers but the head
    take 4.127 bits a weight and the rest is float32; "nf4_float16" has the rest in float16. The
    parameters are those that `count_recipe` counts; the trained ones are not among the matrices.
    """
    quantized = _quantizable(model)
    frozen, codes = total - trainable, quantized * NF4_BITS / 8
    rest = frozen - quantized
    stored = {
        "float32": 4 * frozen,
        "float16": 2 * frozen,
        "nf4": round(codes + 4 * rest),
        "nf4_float16": round(codes + 2 * rest),
    }
    return {
        name: Memory(size + 4 * trainable, gradients=4 * trainable, optimizer=2 * 4 * trainable)
        for name, size in stored.items()
    }


def estimate_full_memory(total: int) -> Mapping[str, Memory]:
    """The memory of training all parameters, with everything in "float32" or in "float16".

    float16 is the least that it can take: moments and updates are too small for it. With float32
    copies of the weights and float32 moments beside float16 weights and gradients, a parameter
    takes 16 bytes, as in float32 (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1).
    """
    return {
        name: Memory(size * total, gradients=size * total, optimizer=2 * size * total)
        for name, size in (("float32", 4), ("float16", 2))
    }


def _quantizable(model: TransformerConfig) -> int:
    """The sizes of the matrices of all affine layers but the head."""
    seams = capture_seams(Transformer(model, Skeleton()))
    layers = [s.module for s in seams if isinstance(s.module, Affine) and not s.is_head]
    return sum(layer.in_features * layer.out_features for layer in layers)
