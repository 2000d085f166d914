"""LoRA's settings, with the names and meanings that Hugging Face PEFT gives them on disk."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tinygrad_peft.arrays import Shape
from tinygrad_peft.peft import TargetedConfig

__all__ = ["LoraConfig", "pattern_matches"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig(TargetedConfig):
    """Low-rank adaptation of affine layers.

    r: the rank of the update.
    lora_alpha: the update is scaled by lora_alpha / r.
    lora_dropout: how much of the low-rank path's input is dropped in training.
    use_rslora: scale by lora_alpha / √r instead (Kalajdzievski 2023, arXiv 2312.03732).
    bias: which of the base's biases are trained as well: "none", "all", or those of the targets.
    init_lora_weights: True, A Kaiming-uniform and B zero; "gaussian", A ~ N(0, 1/r²) and B zero;
        False, both Kaiming-uniform, which does not start as the identity.
    rank_pattern, alpha_pattern: other ranks and alphas for paths that a key matches, as a regular
        expression for the whole path or for what follows a dot; the first key that matches counts.
    """

    peft_type: ClassVar[str] = "LORA"
    learning_rate: ClassVar[float | None] = 1e-3
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("q_proj", "v_proj"),
        "bert": ("query", "value"),
    }
    # How a base stores its weights is the base's business, and the others belong to what is off.
    passed_over: ClassVar[Mapping[str, object]] = {
        "fan_in_fan_out": True,
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
    }

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | Literal["gaussian"] = True
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Ranks below one, an alpha that is no number, rates outside [0, 1), broken patterns."""
        found = super().problems()
        for name, rank in {"r": self.r, **self.rank_pattern}.items():
            if rank < 1:
                found.append(f"the rank {name}={rank} must be at least 1")
        for name, alpha in {"lora_alpha": self.lora_alpha, **self.alpha_pattern}.items():
            if not math.isfinite(alpha) or not alpha:
                found.append(f"{name}={alpha} must be a number other than 0")
        if not 0 <= self.lora_dropout < 1:
            found.append(f"lora_dropout={self.lora_dropout} must be at least 0 and below 1")
        if self.bias not in ("none", "all", "lora_only"):
            found.append(f"bias={self.bias!r} must be 'none', 'all' or 'lora_only'")
        if self.init_lora_weights not in (True, False, "gaussian"):
            found.append(
                f"init_lora_weights={self.init_lora_weights!r} must be a bool or 'gaussian'"
            )
        for key in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(key)
            except (re.error, OverflowError, RecursionError) as error:
                found.append(f"the pattern {key!r} is no regular expression: {error}")
        return found

    def stored_problems(self, shapes: Mapping[str, Shape]) -> list[str]:
        """Matrices of another rank than the settings say, and such without their other half."""
        found = super().stored_problems(shapes)
        for own, other, axis in (("lora_A", "lora_B", 0), ("lora_B", "lora_A", 1)):
            for name, shape in shapes.items():
                path, matrix, rest = name.rpartition(f".{own}.weight")
                if not matrix or rest or len(shape) != 2:
                    continue
                rank, half = self.rank(path), f"{path}.{other}.weight"
                if shape[axis] != rank:
                    found.append(f"{name} is {shape}, and the settings give it the rank {rank}")
                if half not in shapes:
                    found.append(f"{name} is there without {half}")
        return found

    def rank(self, path: str) -> int:
        """The rank at a path."""
        return next((v for k, v in self.rank_pattern.items() if pattern_matches(k, path)), self.r)

    def scaling(self, path: str) -> float:
        """α/r, or α/√r, at a path."""
        patterns = self.alpha_pattern.items()
        alpha = next((v for k, v in patterns if pattern_matches(k, path)), self.lora_alpha)
        rank = self.rank(path)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def pattern_matches(key: str, path: str) -> bool:
    """Whether a pattern's key names a path, or the end of one after a dot."""
    return re.fullmatch(rf"(.*\.)?({key})", path) is not None
