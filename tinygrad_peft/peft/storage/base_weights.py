"""The base's own weights in an adapter's file.

Hugging Face PEFT also writes the whole matrix of an adapted embedding or output layer, as
`<path>.base_layer.weight`, in case the vocabulary has grown. It must equal the base's.
"""

from collections.abc import Mapping

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.models.hf import FLOATS, StoredTensor
from tinygrad_peft.nn import Parameter
from tinygrad_peft.peft.recipes.record import Record

__all__ = ["base_weights", "without_base"]

TOLERANCE = 1e-6  # of the largest weight


def without_base(
    record: Record, step: int, found: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return the tensors without the base's own, and the differences of those from the base.

    A base without values (`Skeleton`) is compared by shapes alone.
    """
    left, problems = dict(found), []
    for key, weight in base_weights(record, step).items():
        if key in found and _is_other(left.pop(key), weight):
            problems.append(f"another base: {key} is not the weight of this model")
    return left, problems


def base_weights(record: Record, step: int) -> dict[str, Parameter]:
    """Return the weights of the modules that a step adapted, by PEFT's names for them."""
    return {
        rewrite.config.file_format.plain_key(rewrite.seam.path, "base_layer.weight"): parameter
        for rewrite in record.rewrites
        if rewrite.step == step
        for name, parameter in rewrite.before.own_parameters()
        if name == "weight"
    }


def _is_other(stored: StoredTensor, weight: Parameter) -> bool:
    if stored.shape != weight.shape or stored.dtype not in FLOATS:
        return True
    if _is_hollow(weight.data):
        return False
    apart = np.abs(stored.read(weight.dtype) - weight.data).max(initial=0)
    return not apart <= TOLERANCE * np.abs(weight.data).max(initial=0)


def _is_hollow(array: Array) -> bool:
    """Return True for a read-only array whose elements are one number in memory."""
    return not array.flags.writeable and not any(array.strides)
