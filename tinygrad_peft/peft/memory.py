"""How much memory the weights and the training of a recipe take, from sizes alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from tinygrad_peft.nn import Affine, Skeleton, Transformer, TransformerConfig
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.host import Host
from tinygrad_peft.peft.sites import capture_seams

__all__ = ["Memory", "estimate_memory"]


@dataclass(frozen=True)
class Memory:
    """Bytes, without activations.

    weights: of all parameters, by how they are stored: in "float32", in "float16", and in each
        format F of the hook `weight_formats`, which takes the matrices of all affine layers but the
        head: F has the rest in float32, and F_float16 has it in float16.
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


def estimate_memory(
    model: TransformerConfig, trainable: int, total: int, host: Host | None = None
) -> Memory:
    """Estimate the memory of a model of that shape.

    `trainable` and `total` are parameters as `count_recipe` counts them. The plugins of `host`, by
    default all that are installed, say what formats there are beside floats.
    """
    weights = {"float32": 4 * total, "float16": 2 * total}
    packable = _packable(model)
    answers = (Host.installed() if host is None else host).each(hookspecs.weight_formats)
    for form in (form for answer in answers for form in answer):
        packed, rest = packable * form.bits / 8, total - packable
        weights[form.name] = round(packed + 4 * rest)
        weights[f"{form.name}_float16"] = round(packed + 2 * rest)
    return Memory(weights, gradients=4 * trainable, optimizer=2 * 4 * trainable)


def _packable(model: TransformerConfig) -> int:
    """Return the sizes of the matrices of all affine layers but the head, together."""
    seams = capture_seams(Transformer(model, Skeleton()))
    layers = [s.module for s in seams if isinstance(s.module, Affine) and not s.is_head]
    return sum(layer.in_features * layer.out_features for layer in layers)
