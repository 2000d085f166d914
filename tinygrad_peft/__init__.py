"""A plugin-based NumPy framework for parameter-efficient fine-tuning of real transformers.

The names are imported when they are first used, so that `tinygrad-peft --help` need not wait for
NumPy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinygrad_peft.host import Host
    from tinygrad_peft.models import load_model, save_model
    from tinygrad_peft.nn import Module, Parameter, Transformer, TransformerConfig
    from tinygrad_peft.peft import PeftModel, get_peft_model
    from tinygrad_peft.tensor import Tensor, no_grad
else:
    _HOMES = {
        "Host": "tinygrad_peft.host",
        "Module": "tinygrad_peft.nn",
        "Parameter": "tinygrad_peft.nn",
        "PeftModel": "tinygrad_peft.peft",
        "Tensor": "tinygrad_peft.tensor",
        "Transformer": "tinygrad_peft.nn",
        "TransformerConfig": "tinygrad_peft.nn",
        "get_peft_model": "tinygrad_peft.peft",
        "load_model": "tinygrad_peft.models",
        "no_grad": "tinygrad_peft.tensor",
        "save_model": "tinygrad_peft.models",
    }

    def __getattr__(name):  # noqa: ANN001, ANN202 - hidden from mypy, which sees the real names
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home), name)

    def __dir__():  # noqa: ANN202 - hidden from mypy
        return sorted({*globals(), *_HOMES})


__all__ = [
    "Host",
    "Module",
    "Parameter",
    "PeftModel",
    "Tensor",
    "Transformer",
    "TransformerConfig",
    "get_peft_model",
    "load_model",
    "no_grad",
    "save_model",
]
