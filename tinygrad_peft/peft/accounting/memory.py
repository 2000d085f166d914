"""Memory of weights and training, estimated from sizes alone.

Each trained parameter takes 16 bytes in float32, 4 for itself, 4 for its gradient and 2 x 4 for
AdamW's moments, however the frozen weights are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tinygrad_peft.host import Host
from tinygrad_peft.nn import Affine, Skeleton, Transformer, TransformerConfig
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.sites import capture_seams

__all__ = ["Memory", "estimate_full_memory", "estimate_memory"]


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


def estimate_memory(
    model: TransformerConfig, trainable: int, total: int, host: Host | None = None
) -> Mapping[str, Memory]:
    """Estimate the memory of a model of that shape, for each way to store the frozen weights.

    The keys are "float32", "float16", and two for each format F of the hook `weight_formats`, which
    stores the matrices of all affine layers except the head: F keeps the other weights in float32,
    F_float16 in float16. `host` defaults to all installed plugins. `trainable` and `total` are the
    counts of `count_recipe`; trained parameters are float32, and not among the matrices.
    """
    frozen = total - trainable
    packable = _packable(model)
    stored = {"float32": 4 * frozen, "float16": 2 * frozen}
    answers = (Host.installed() if host is None else host).each(hookspecs.weight_formats)
    for form in (form for answer in answers for form in answer):
        packed, rest = packable * form.bits / 8, frozen - packable
        stored[form.name] = round(packed + 4 * rest)
        stored[f"{form.name}_float16"] = round(packed + 2 * rest)
    return {
        name: Memory(size + 4 * trainable, gradients=4 * trainable, optimizer=2 * 4 * trainable)
        for name, size in stored.items()
    }


def estimate_full_memory(total: int) -> Mapping[str, Memory]:
    """Estimate the memory of training all parameters, all in "float32" or all in "float16".

    float16 is a lower bound: moments and updates underflow in it. With float32 copies of the
    weights and float32 moments beside float16 weights and gradients, a parameter takes 16 bytes, as
    in float32 (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1).
    """
    return {
        name: Memory(size * total, gradients=size * total, optimizer=2 * size * total)
        for name, size in (("float32", 4), ("float16", 2))
    }


def _packable(model: TransformerConfig) -> int:
    """Count the elements of the matrices of all affine layers except the head."""
    seams = capture_seams(Transformer(model, Skeleton()))
    layers = [s.module for s in seams if isinstance(s.module, Affine) and not s.is_head]
    return sum(layer.in_features * layer.out_features for layer in layers)
