from typing import ClassVar

from tinygrad_peft.testing import SMALL_MODELS, MethodConformance
from tinygrad_peft_bitfit import BitFitConfig


class TestBitFit(MethodConformance):
    config = BitFitConfig()
    models: ClassVar = {family: SMALL_MODELS[family] for family in ("gpt2", "bert")}  # with biases
