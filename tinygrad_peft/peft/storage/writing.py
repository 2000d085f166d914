"""Write the tensors of an adapter."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tinygrad_peft.arrays import Array

__all__ = ["write_tensors"]


def write_tensors(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a safetensors file."""
    tensors = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
    path.write_bytes(save(tensors, metadata={"format": "pt"}))
