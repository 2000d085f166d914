"""QLoRA: a base at 4 bits, and LoRA on top of it (Dettmers et al. 2023)."""

from tinygrad_peft_qlora.config import QLoraConfig, QuantizeConfig
from tinygrad_peft_qlora.layer import QuantizedLinear, quantized_linear
from tinygrad_peft_qlora.quantization import QuantizedWeight, dequantize, quantize
from tinygrad_peft_qlora.requantize import LayerReport, RequantizeReport, merge_requantized

__all__ = [
    "LayerReport",
    "QLoraConfig",
    "QuantizeConfig",
    "QuantizedLinear",
    "QuantizedWeight",
    "RequantizeReport",
    "dequantize",
    "merge_requantized",
    "quantize",
    "quantized_linear",
]
