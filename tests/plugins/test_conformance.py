from tinygrad_peft.testing import MethodConformance
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig


class TestLora(MethodConformance):
    config = LoraConfig()


class TestIA3(MethodConformance):
    config = IA3Config()


class TestAdapter(MethodConformance):
    config = BottleneckAdapterConfig()
    mergeable = False
