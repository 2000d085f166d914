"""The built-in methods keep the promises that every method keeps."""

from tinygrad_peft.testing import MethodConformance
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_lora import LoraConfig


class TestLora(MethodConformance):
    config = LoraConfig()


class TestAdapter(MethodConformance):
    config = BottleneckAdapterConfig()
    mergeable = False
