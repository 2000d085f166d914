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
    """Linear layers stored at 4 bits: nothing is trained, and any method may stand on them.

    quant_type: "nf4", the 16 values that suit normally distributed weights; or "int4", 16 values at
        equal distances.
    block_size: how many weights share a scale: a power of two from 32 to 4096.
    double_quant: store NF4's scales at 8 bits: 4.127 bits a weight in place of 4.5.
    """

    peft_type: ClassVar[str] = "QUANTIZE"
    adapts: ClassVar[tuple[type, ...]] = (Affine,)

    target_modules: str | Sequence[str] = "all-linear"
    quant_type: QuantType = "nf4"
    block_size: int = 64
    double_quant: bool = False

    def problems(self) -> list[str]:
        """Block sizes that are no power of two or out of range, and double int4."""
        found = setting_problems(self.quant_type, self.block_size, double_quant=self.double_quant)
        return [*super().problems(), *found]


@dataclass(frozen=True, kw_only=True)
class QLoraConfig(LoraConfig):
    """QLoRA (Dettmers et al. 2023): every linear layer but the head at 4 bits, and LoRA on top.

    It stands for two steps, `QuantizeConfig` and `LoraConfig`. All that LoRA has is LoRA's, but for
    where it goes: to all linear layers by default, which takes it to what LoRA reaches on a base of
    floats (section 4 of the paper). Modules that `modules_to_save` names are not quantised.
    """

    peft_type: ClassVar[str] = "QLORA"

    target_modules: str | Sequence[str] | None = "all-linear"
    quant_type: QuantType = "nf4"
    block_size: int = 64
    double_quant: bool = False

    def problems(self) -> list[str]:
        """What either step objects to."""
        found = setting_problems(self.quant_type, self.block_size, double_quant=self.double_quant)
        return [*super().problems(), *found]

    def steps(self) -> tuple[PeftConfig, ...]:
        """The two steps: first the base at 4 bits, then LoRA."""
        saved = "|".join(map(re.escape, self.modules_to_save))
        quantize = QuantizeConfig(
            quant_type=self.quant_type,
            block_size=self.block_size,
            double_quant=self.double_quant,
            exclude_modules=rf"(.*\.)?({saved})(\..*)?" if saved else None,
        )
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(LoraConfig)}
        return quantize, LoraConfig(**own)
