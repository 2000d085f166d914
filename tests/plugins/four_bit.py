"""Helpers for the tests of 4-bit bases."""

from collections.abc import Sequence

import numpy as np

import tinygrad_peft_ia3.plugin
import tinygrad_peft_lora.plugin
import tinygrad_peft_qlora.plugin
from tests.peft.small import LLAMA, small
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, capture_seams, get_peft_model
from tinygrad_peft_qlora import QuantizedLinear


def host() -> Host:
    made = Host()
    made.register(tinygrad_peft_lora.plugin, "lora")
    made.register(tinygrad_peft_qlora.plugin, "qlora")
    made.register(tinygrad_peft_ia3.plugin, "ia3")
    return made


def adapted(
    recipe: PeftConfig | Sequence[PeftConfig],
    config: TransformerConfig = LLAMA,
    dtype: type[np.floating] = np.float32,
) -> PeftModel:
    return get_peft_model(small(config, dtype), recipe, host=host())


def packed_paths(model: Transformer) -> set[str]:
    seams = capture_seams(model)
    places = (s.path for s in seams if isinstance(s.module, QuantizedLinear))
    return {path.removesuffix(".base_layer") for path in places}
