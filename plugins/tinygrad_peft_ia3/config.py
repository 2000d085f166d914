"""(IA)³'s settings, with the names and meanings that Hugging Face PEFT gives them on disk."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft.errors import hinted
from tinygrad_peft.nn import Affine
from tinygrad_peft.peft import (
    FileFormat,
    NamedTargetsConfig,
    Shapes,
    broken_expressions,
    matches,
    named_by,
)

__all__ = ["IA3Config"]


def with_feedforward_targets(values: Mapping[str, object]) -> Mapping[str, object]:
    """Repair feed-forward modules that PEFT writes but cannot read back.

    PEFT fills in a family's usual ones for any targets, and writes "all-linear" as paths. Then it
    refuses to read the file, since the names differ. Keep those that are targets.
    """
    named = _names(values.get("target_modules"))
    feedforward = _names(values.get("feedforward_modules"))
    if not named or set(feedforward) <= set(named):
        return values
    # Two names can match one module where one is the end of the other.
    ends = {n for names in named_by(named, feedforward).values() for n in names}
    ends |= {n for n, others in named_by(feedforward, named).items() if others}
    meant = [re.escape(name) for name in feedforward if name in ends]
    return {**values, "feedforward_modules": rf"(.*\.)?({'|'.join(meant)})" if meant else []}


@dataclass(frozen=True, kw_only=True)
class IA3Config(NamedTargetsConfig):
    """Learned factors for the outputs, or the inputs, of affine layers.

    feedforward_modules: the targets whose input is multiplied instead of their output, as in the
        paper's feed-forward layers: a list of names, which must be in target_modules where that is
        a list; a regular expression for the whole path; or None for the usual ones in the model's
        family.
    init_ia3_weights: True, all factors start at one; False, at N(0, 1), which does not start as the
        identity.
    """

    peft_type: ClassVar[str] = "IA3"
    learning_rate: ClassVar[float | None] = 1e-2
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn", "mlp.c_proj"),
        "llama": ("k_proj", "v_proj", "down_proj"),
        "bert": ("key", "value", "output.dense"),
    }
    adapts: ClassVar[tuple[type, ...]] = (Affine,)
    usual_feedforward: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("mlp.c_proj",),
        "llama": ("down_proj",),
        "bert": ("output.dense",),
    }
    feedforward_modules: str | Sequence[str] | None = None
    init_ia3_weights: bool = True

    def problems(self) -> list[str]:
        """List broken expressions, and feed-forward modules that are not targets."""
        named, feedforward = self.target_modules, self.feedforward_modules
        found = super().problems()
        if isinstance(feedforward, str):
            return found + broken_expressions("feedforward_modules", [feedforward])
        if named is None or isinstance(named, str):
            return found
        known = set(named)
        absent = [name for name in feedforward or () if name not in known]
        return found + [
            f"feedforward_modules: {name!r} is not in target_modules{close}"
            for name, close in hinted(absent, named)
        ]

    def scales_input(self, path: str, model_type: str) -> bool:
        """Tell whether the vector at a path multiplies the layer's input."""
        given = self.feedforward_modules
        return matches(path, self.usual_feedforward.get(model_type, ()) if given is None else given)

    def contradictions(self, shapes: Shapes) -> list[str]:
        """List vectors whose shape contradicts the settings on any model."""
        found: list[str] = []
        if self.feedforward_modules is None:
            return found
        for name, shape in shapes.items():
            path, vector, _ = name.rpartition(".ia3_l")
            on_input = self.scales_input(path, "")
            expected = "(1, in)" if on_input else "(out, 1)"
            if vector and (len(shape) != 2 or shape[0 if on_input else 1] != 1):
                found.append(f"{name}: expected shape {expected}, got {shape}")
        return found

    file_format: ClassVar[FileFormat["IA3Config"]] = FileFormat(
        ignored_settings={"fan_in_fan_out": True},  # the base's storage order
        training_settings=("init_ia3_weights", "fan_in_fan_out", "merge_weights"),
        repairs=with_feedforward_targets,
        checks=contradictions,
    )


def _names(value: object) -> list[str]:
    """Return a list of names from a file; empty for other values."""
    found = value if isinstance(value, list) else []
    names = [name for name in found if isinstance(name, str)]
    return names if len(names) == len(found) else []
