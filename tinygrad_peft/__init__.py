"""A plugin-based NumPy framework for parameter-efficient fine-tuning of real transformers."""

from tinygrad_peft.nn import Module, Parameter
from tinygrad_peft.peft import Host, PeftModel, get_peft_model
from tinygrad_peft.tensor import Tensor, no_grad

__all__ = ["Host", "Module", "Parameter", "PeftModel", "Tensor", "get_peft_model", "no_grad"]
