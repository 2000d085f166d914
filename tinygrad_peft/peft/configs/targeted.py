"""Base classes for settings of methods that adapt modules chosen by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft.errors import failures
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.patterns import broken_expressions

__all__ = [
    "NamedTargetsConfig",
    "TargetedConfig",
    "dropout_problems",
    "layer_patterns",
]


@dataclass(frozen=True, kw_only=True)
class NamedTargetsConfig(PeftConfig):
    """Settings of a method that adapts chosen modules.

    target_modules: a list of names, each matching a path that equals it or ends with "." and it;
        or one regular expression that matches a whole path; or "all-linear", every affine layer
        except the model's head; or None, the method's usual targets for the model's family.
    exclude_modules: names or a regular expression of the same kind, for modules to leave alone.

    `adapts` lists the kinds of modules that the method can adapt, if the class declares them: then
    a target without any module of these kinds is refused before anything is applied, and when
    parameters are counted.
    """

    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None

    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # by model_type
    adapts: ClassVar[tuple[type, ...]] = ()

    def problems(self) -> list[str]:
        """List regular expressions that do not compile, and an empty list."""
        found = [
            *super().problems(),
            *broken_expressions("target_modules", [self.target_modules]),
            *broken_expressions("exclude_modules", [self.exclude_modules]),
        ]
        if self.target_modules is not None and not self.target_modules:
            found.append("target_modules is empty: leave it out for the method's usual targets")
        return found


@dataclass(frozen=True, kw_only=True)
class TargetedConfig(NamedTargetsConfig):
    """Settings of a method that adapts chosen modules, optionally in some layers only.

    layers_to_transform: the numbers of the layers to adapt (the first number in a path); the others
        are left alone. A target that is a whole path is adapted in any layer.
    layers_pattern: the name before the layer's number, where a path has several numbers.

    `layers_need_names` refuses layers_to_transform beside an expression or "all-linear", as PEFT
    does for its methods.
    """

    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None

    layers_need_names: ClassVar[bool] = False

    def problems(self) -> list[str]:
        """List regular expressions that do not compile, and layers that cannot be chosen."""
        patterns, layers = layer_patterns(self), self.layers_to_transform
        rules = {
            "layers_pattern has no effect without layers_to_transform": (
                bool(patterns) and layers is None
            ),
            "layers_to_transform is empty: leave it out for all layers": (
                isinstance(layers, Sequence) and not layers
            ),
            "layers_to_transform needs target_modules as a list or None, not as an expression": (
                self.layers_need_names
                and isinstance(self.target_modules, str)
                and layers is not None
            ),
        }
        broken = broken_expressions("layers_pattern", patterns, is_part=True)
        return [*super().problems(), *broken, *failures(rules)]


def dropout_problems(**rates: float) -> list[str]:
    """List the dropout rates, by their settings' names, outside [0, 1)."""
    return [
        f"{name}={rate} must be at least 0 and below 1"
        for name, rate in rates.items()
        if not 0 <= rate < 1
    ]


def layer_patterns(config: PeftConfig) -> Sequence[str]:
    """Return the expressions for the name before a layer's number; empty for any name."""
    pattern = config.layers_pattern if isinstance(config, TargetedConfig) else None
    return [pattern] if pattern and isinstance(pattern, str) else pattern or ()
