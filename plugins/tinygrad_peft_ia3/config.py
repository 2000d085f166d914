"""(IA)³'s settings, with the names and meanings that Hugging Face PEFT gives them on disk."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft.errors import nearest
from tinygrad_peft.nn import Affine
from tinygrad_peft.peft import (
    FileFormat,
    NamedTargetsConfig,
    Shapes,
    broken_expressions,
    matches,
)

__all__ = ["IA3Config"]


def with_feedforward_targets(values: Mapping[str, object]) -> Mapping[str, object]:
    """Return the settings with feed-forward modules that are targets alone.

    PEFT fills in a family's usual ones whatever the targets are, and writes "all-linear" as paths.
    Then it refuses to read what it wrote, since the names differ.
    """
    named = _names(values.get("target_modules"))
    feedforward = _names(values.get("feedforward_modules"))
    if not named or set(feedforward) <= set(named):
        return values
    meant = [re.escape(n) for n in feedforward if any(_may_meet(n, other) for other in named)]
    return {**values, "feedforward_modules": rf"(.*\.)?({'|'.join(meant)})" if meant else []}


@dataclass(frozen=True, kw_only=True)
class IA3Config(NamedTargetsConfig):
    """Learned factors for what affine layers give, or for what they are given.

    feedforward_modules: the targets whose input is multiplied, as in the paper's feed-forward
        layers, instead of their output: a list of names, each of which is one of target_modules
        where those are a list; or one regular expression that matches a whole path; or None, the
        usual ones in the model's family.
    init_ia3_weights: whether all factors start at one; otherwise they are drawn from N(0, 1), which
        does not start as the identity.
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
        """Broken expressions, and feed-forward modules that are no targets."""
        named, feedforward = self.target_modules, self.feedforward_modules
        found = super().problems()
        if isinstance(feedforward, str):
            return found + broken_expressions("feedforward_modules", [feedforward])
        if named is None or isinstance(named, str):
            return found
        return found + [
            f"feedforward_modules: {name!r} is none of target_modules{nearest(name, named)}"
            for name in feedforward or ()
            if name not in named
        ]

    def scales_input(self, path: str, model_type: str) -> bool:
        """Whether the vector at a path is for what the layer is given."""
        given = self.feedforward_modules
        return matches(path, self.usual_feedforward.get(model_type, ()) if given is None else given)

    def contradictions(self, shapes: Shapes) -> list[str]:
        """List vectors of other shapes than the settings give them on any model."""
        found: list[str] = []
        if self.feedforward_modules is None:
            return found
        for name, shape in shapes.items():
            path, vector, _ = name.rpartition(".ia3_l")
            on_input = self.scales_input(path, "")
            side = "input are (1, in)" if on_input else "output are (out, 1)"
            if vector and (len(shape) != 2 or shape[0 if on_input else 1] != 1):
                found.append(f"{name} is {shape}: the factors of a layer's {side}")
        return found

    file_format: ClassVar[FileFormat["IA3Config"]] = FileFormat(
        ignored_settings={"fan_in_fan_out": True},  # how the base stores its weights
        repairs=with_feedforward_targets,
        checks=contradictions,
    )


def _names(value: object) -> list[str]:
    """A list of names in a file; nothing where it is no such list."""
    found = value if isinstance(value, list) else []
    names = [name for name in found if isinstance(name, str)]
    return names if len(names) == len(found) else []


def _may_meet(name: str, other: str) -> bool:
    """Whether two names can be for the same module: the end of one is the other."""
    one, two = f".{name}", f".{other}"
    return one.endswith(two) or two.endswith(one)
