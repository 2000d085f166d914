"""LN tuning's settings, with the names and meanings that Hugging Face PEFT gives them on disk."""

from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft.peft import PREFIX, FileFormat, NamedTargetsConfig, Shapes

__all__ = ["LNTuningConfig"]

# The norms of all families. PEFT has no default targets for BERT, but takes an expression.
ALL_NORMS = r"(.*\.)?(ln_\w+|\w*norm|LayerNorm)"
OWN = "ln_tuning_layers"  # PEFT's name for the copy of a norm


@dataclass(frozen=True, kw_only=True)
class LNTuningConfig(NamedTargetsConfig):
    """Training of the norms that `target_modules` names; of all norms by default."""

    peft_type: ClassVar[str] = "LN_TUNING"
    learning_rate: ClassVar[float | None] = 5e-3

    def __post_init__(self) -> None:
        if self.target_modules is None:
            object.__setattr__(self, "target_modules", ALL_NORMS)
        super().__post_init__()

    def contradictions(self, shapes: Shapes) -> list[str]:
        """List weights that are not vectors, and biases without a weight of their size."""
        found: list[str] = []
        for name, shape in shapes.items():
            path, own, field = name.rpartition(f".{OWN}.")
            if not own:
                continue
            weight = f"{path}.{OWN}.weight"
            if field not in ("weight", "bias"):
                found.append(f"{name}: expected a weight or a bias, got {field!r}")
            elif len(shape) != 1:
                found.append(f"{name}: expected a vector, got shape {shape}")
            elif shapes.get(weight) != shape:
                found.append(f"{name} {shape}: {weight} of the same shape is missing")
        return found

    # PEFT keeps a copy of the norm in a wrapper.
    file_format: ClassVar[FileFormat["LNTuningConfig"]] = FileFormat(
        tensor_key=lambda path, name: f"{PREFIX}.{path}.{OWN}.{name}", checks=contradictions
    )
