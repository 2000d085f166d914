"""The settings of 4-bit bases, alone and with LoRA on top."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft.nn import Affine
from tinygrad_peft.peft import PeftConfig, TargetedConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_qlora.quantization import QuantType, setting_problems

__all__ = ["QLoraConfig", "QuantizeConfig"]


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(TargetedConfig):
    """Linear layers stored at 4 bits, frozen, for any method on top.

    quant_type: "nf4", 16 values for normally distributed weights; or "int4", 16 equally spaced
        values.
    block_size: the number of weights that share a scale: a power of two from 32 to 4096.
    double_quant: store NF4's scales at 8 bits: 4.127 bits per weight instead of 4.5.
    """

    peft_type: ClassVar[str] = "QUANTIZE"
    adapts: ClassVar[tuple[type, ...]] = (Affine,)

    target_modules: str | Sequence[str] = "all-linear"
    quant_type: QuantType = "nf4"
    block_size: int = 64
    double_quant: bool = False

    def problems(self) -> list[str]:
        """List unsupported block sizes, and double quantisation of int4."""
        found = setting_problems(self.quant_type, self.block_size, double_quant=self.double_quant)
        return [*super().problems(), *found]


@dataclass(frozen=True, kw_only=True)
class QLoraConfig(LoraConfig):
    """QLoRA (Dettmers et al. 2023): every linear layer but the head at 4 bits, and LoRA on top.

    It stands for two steps, `QuantizeConfig` and `LoraConfig`, with LoRA's settings. By default,
    LoRA adapts all linear layers, which the paper needs to match LoRA on a float base (section 4).
    Modules in `modules_to_save` are not quantised.
    """

    peft_type: ClassVar[str] = "QLORA"

    target_modules: str | Sequence[str] | None = "all-linear"
    quant_type: QuantType = "nf4"
    block_size: int = 64
    double_quant: bool = False

    def problems(self) -> list[str]:
        """List the problems of both steps."""
        found = setting_problems(self.quant_type, self.block_size, double_quant=self.double_quant)
        return [*super().problems(), *found]

    def steps(self) -> tuple[PeftConfig, ...]:
        """Return the two steps: quantising the base, then LoRA."""
        saved = "|".join(map(re.escape, self.modules_to_save))
        quantize = QuantizeConfig(
            quant_type=self.quant_type,
            block_size=self.block_size,
            double_quant=self.double_quant,
            exclude_modules=rf"(.*\.)?({saved})(\..*)?" if saved else None,
        )
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(LoraConfig)}
        return quantize, LoraConfig(**own)
