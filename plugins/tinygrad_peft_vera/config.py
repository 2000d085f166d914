"""VeRA's settings, with the names and meanings that Hugging Face PEFT gives them on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from tinygrad_peft.arrays import Shape
from tinygrad_peft.errors import failures
from tinygrad_peft.nn import Affine
from tinygrad_peft.peft import PREFIX, FileFormat, Shapes, TargetedConfig, dropout_problems

__all__ = ["VeraConfig"]

PROJECTION = "projection."  # the field of a layer that holds the matrices
A, B = "base_model.vera_A", "base_model.vera_B"  # their names in a file, which belong to the model
HALVES = {"vera_lambda_b": "vera_lambda_d", "vera_lambda_d": "vera_lambda_b"}
# The seeds that PyTorch takes: from the first to below the second.
LARGEST_RANK = 100_000
KEYS = -(2**63), 2**64


def _tensor_key(path: str, name: str) -> str:
    """Return PEFT's name: the matrices belong to the model, not to a module."""
    if name.startswith(PROJECTION):
        return f"base_model.{name.removeprefix(PROJECTION)}"
    return f"{PREFIX}.{path}.{name}"


@dataclass(frozen=True, kw_only=True)
class VeraConfig(TargetedConfig):
    """Vector-based random matrix adaptation of affine layers.

    r: the rank of the random matrices, which all targets share.
    projection_prng_key: their seed.
    save_projection: save them beside the vectors; otherwise they are drawn again.
    vera_dropout: the dropout rate of A's input.
    d_initial: the initial value of λ_d.
    bias: the biases of the base that are trained too: "none", "all", or the targets' own.
    """

    peft_type: ClassVar[str] = "VERA"
    learning_rate: ClassVar[float | None] = 3e-2
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("q_proj", "v_proj"),
        "bert": ("query", "value"),
    }
    adapts: ClassVar[tuple[type, ...]] = (Affine,)
    layers_need_names: ClassVar[bool] = True

    r: int = 256
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    bias: Literal["none", "all", "vera_only"] = "none"

    def problems(self) -> list[str]:
        """List numbers out of range, and settings that PEFT would read differently."""
        key = self.projection_prng_key
        rules = {
            f"the rank r={self.r} must be at least 1": self.r < 1,
            f"the rank r={self.r} must be at most {LARGEST_RANK:,}, the size of A and B": (
                self.r > LARGEST_RANK
            ),
            f"projection_prng_key={key} must be an integer from -2⁶³ to below 2⁶⁴": (
                not KEYS[0] <= key < KEYS[1]
            ),
            f"d_initial={self.d_initial} must be a number other than 0": not self.d_initial,
        }
        return [
            *super().problems(),
            *dropout_problems(vera_dropout=self.vera_dropout),
            *failures(rules),
        ]

    def contradictions(self, shapes: Shapes) -> list[str]:
        """List matrices that contradict `save_projection`, and shapes that do not fit."""
        found: list[str] = []
        for name in (A, B):
            if (name in shapes) is not self.save_projection:
                there = "unexpected" if name in shapes else "missing"
                found.append(f"{there}: {name} (save_projection={self.save_projection})")
        for name, shape in shapes.items():
            path, _, field = name.rpartition(".")
            expected = _expected(name, shape, self.r)
            if expected is not None and shape != expected:
                found.append(f"{name}: expected shape {expected} (r={self.r}), got {shape}")
            elif field == "vera_lambda_b" and shape > shapes.get(B, shape)[:1]:
                found.append(f"{name}: expected at most the rows of {B}, got shape {shape}")
            other = f"{path}.{HALVES.get(field)}"
            if field in HALVES and other not in shapes:
                found.append(f"{name}: {other} is missing")
        return found

    file_format: ClassVar[FileFormat["VeraConfig"]] = FileFormat(
        # The base's storage order, and the initialisation of weights that are loaded anyway.
        ignored_settings={"fan_in_fan_out": True, "init_weights": True},
        training_settings=("vera_dropout", "d_initial", "init_weights", "fan_in_fan_out"),
        exclusions=False,
        tensor_key=_tensor_key,
        checks=contradictions,
        ranks=lambda config, _path: config.r,
    )


def _expected(name: str, shape: Shape, r: int) -> Shape | None:
    """Return the shape that a tensor's name implies; None for other tensors."""
    first, last = (shape[0], shape[-1]) if shape else (1, 1)
    kinds: dict[str, Shape] = {
        A: (r, last),
        B: (first, r),
        "vera_lambda_d": (r,),
        "vera_lambda_b": (first,),
    }
    return kinds.get(name, kinds.get(name.rpartition(".")[2]))
