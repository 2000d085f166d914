from tinygrad_peft.testing import MethodConformance
from tinygrad_peft_ia3 import IA3Config


class TestIA3(MethodConformance):
    config = IA3Config()
