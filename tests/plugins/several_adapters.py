"""Helpers for the tests of weighted sums of adapters."""

import numpy as np

from tests.peft.small import shake, small
from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model


def several(shape: TransformerConfig, host: Host, **configs: PeftConfig) -> PeftModel:
    """Return a float64 model with an adapter for each config, by name, with moved weights."""
    (first, config), *others = configs.items()
    peft = get_peft_model(small(shape, np.float64), config, adapter_name=first, host=host)
    shake(peft, 0)
    for seed, (name, other) in enumerate(others, 1):
        peft.add_adapter(name, other)
        peft.set_adapter(name)
        shake(peft, seed)
    return peft


def merged_weights(peft: PeftModel, name: str) -> dict[str, Array]:
    """Return all weights of the model with one adapter merged."""
    peft.set_adapter(name)
    peft.merge_adapter()
    found = {path: p.data.copy() for path, p in peft.base_model.named_parameters()}
    peft.unmerge_adapter()
    return found
