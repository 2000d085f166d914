"""The settings of a method."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np

from tinygrad_peft.arrays import Shape
from tinygrad_peft.errors import ConfigError, PeftError, listed, shortened
from tinygrad_peft.nn import Module

__all__ = [
    "NamedTargetsConfig",
    "PeftConfig",
    "TargetedConfig",
    "broken_expressions",
    "layer_patterns",
    "steps_of",
]


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The base of every method's settings: a frozen dataclass, whose class is the method.

    `peft_type` is the method's name in upper case, as Hugging Face PEFT writes it.
    `modules_to_save` names modules to be trained whole and saved beside the method, by whole
    segments of their paths.
    `passed_over` holds what PEFT writes for features that no model here has, where that is neither
    null nor false nor empty. `not_mergeable` says why the method cannot be merged, if it cannot.
    `stored_root` is what PEFT writes before the paths of the model's modules.
    `learning_rate` is the peak that suits the method as a rule, at which what it added is trained
    where a run names no other. None, the base's, says nothing.
    """

    peft_type: ClassVar[str]
    learning_rate: ClassVar[float | None] = None
    passed_over: ClassVar[Mapping[str, object]] = {}
    not_mergeable: ClassVar[str] = ""
    stored_root: ClassVar[str] = "base_model.model"
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kinds = (field.type, *get_args(field.type))
            whole = float not in kinds or int in kinds
            value = _settled(getattr(self, field.name), keep_integers=whole)
            object.__setattr__(self, field.name, value)
        if isinstance(self.modules_to_save, str):
            raise ConfigError("modules_to_save is a list of names, and not one string")
        problems = list(self.problems())
        if problems:
            raise ConfigError(f"{type(self).__name__} cannot be:\n{listed(problems)}")

    def problems(self) -> list[str]:
        """What is wrong with the settings: a subclass adds its own to super().problems()."""
        return []

    @classmethod
    def as_meant(cls, values: Mapping[str, object]) -> Mapping[str, object]:
        """A file's settings as they are meant, where PEFT writes what it would not read again."""
        return values

    def steps(self) -> tuple["PeftConfig", ...]:
        """The steps that these settings stand for, the innermost first: themselves, as a rule."""
        return (self,)

    def flattened(self) -> "PeftConfig":
        """The settings of what `Reparameterized.flattened` gives: themselves, as a rule.

        Where they are others, a file for other programs has those, and one with these has the
        weights as they are trained.
        """
        return self

    def as_trained(self, modules: Mapping[str, Module]) -> "PeftConfig":  # noqa: ARG002
        """Return the settings that make modules of the trained sizes: themselves, by default.

        `modules` maps each path that the method adapted to its module there. A method that prunes
        ranks in training, say, returns a copy with the ranks that are left: it is saved, counted
        and loaded again.
        """
        return self

    def stored_problems(self, shapes: Mapping[str, Shape]) -> list[str]:  # noqa: ARG002
        """What is wrong with a file's tensors, as far as the names and shapes alone can tell.

        `shapes` are by the names in the file, without "base_model.model.".
        """
        return []

    def stored_name(self, path: str, name: str) -> str:
        """What a file calls the parameter `name` of the module that the method put at `path`."""
        return f"{self.stored_root}.{path}.{name}"


@dataclass(frozen=True, kw_only=True)
class NamedTargetsConfig(PeftConfig):
    """Settings of a method that rewrites chosen modules.

    target_modules: a list of names, each of which matches a path that is it or ends with "." and
        it; or one regular expression that matches a whole path; or "all-linear", every affine layer
        but the model's head; or None, the method's usual targets in the model's family.
    exclude_modules: names or a regular expression of the same kind, to be left alone.

    `adapts` holds the kinds of modules that the method can adapt, if the class says: then an entry
    of which it can adapt nothing is refused before anything is applied, and is not counted.
    `exclusions_in_file` says whether Hugging Face PEFT knows of `exclude_modules` for the method;
    where it does not, the targets that are left are written by their paths.
    """

    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None

    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # by model_type
    adapts: ClassVar[tuple[type, ...]] = ()
    exclusions_in_file: ClassVar[bool] = True

    def problems(self) -> list[str]:
        """Regular expressions that do not compile, and a list that is empty."""
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
    """Settings of a method that rewrites chosen modules, of some layers alone if so wished.

    layers_to_transform: only the layers of these numbers (the first number in a path), all others
        being left alone; a target that is a whole path is taken in any case.
    layers_pattern: what stands before the number that counts, where a path has several.
    """

    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None

    def problems(self) -> list[str]:
        """Regular expressions that do not compile, and lists that are empty."""
        found = [
            *super().problems(),
            *broken_expressions("layers_pattern", layer_patterns(self)),
        ]
        if layer_patterns(self) and self.layers_to_transform is None:
            found.append("layers_pattern says nothing without layers_to_transform")
        if isinstance(self.layers_to_transform, Sequence) and not self.layers_to_transform:
            found.append("layers_to_transform is empty: leave it out for all layers")
        return found


def broken_expressions(name: str, values: Iterable[object]) -> list[str]:
    """What is wrong with those values of a setting that are regular expressions: its texts."""
    shown = ((shortened(repr(v), 100), _expression_error(v)) for v in values if isinstance(v, str))
    return [f"{name}={value} is no regular expression: {error}" for value, error in shown if error]


def _expression_error(text: str) -> str:
    """Why a text is no regular expression; nothing if it is one."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return ""


def layer_patterns(config: PeftConfig) -> Sequence[str]:
    """What stands before the number of a layer; none of them, anything."""
    pattern = config.layers_pattern if isinstance(config, TargetedConfig) else None
    return [pattern] if pattern and isinstance(pattern, str) else pattern or ()


def steps_of(recipe: PeftConfig | Sequence[PeftConfig]) -> tuple[PeftConfig, ...]:
    """The steps of a recipe, or of one config, the innermost first.

    Raises PeftError where there are none, or one is no config.
    """
    configs = (recipe,) if isinstance(recipe, PeftConfig) else tuple(recipe)
    if not configs:
        raise PeftError("a recipe needs at least one step")
    for step, config in enumerate(configs):
        if not isinstance(config, PeftConfig):
            raise PeftError(f"step {step} of the recipe is no config: {config!r}")
    return tuple(step for config in configs for step in config.steps())


def _settled(value: object, *, keep_integers: bool) -> object:
    """The value as one that does not change with what it was made of, and has one order.

    Its numbers are Python's own, and as they are read from a file: where integers are not kept,
    they are floats.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | set | frozenset):
        ordered = value if isinstance(value, list) else sorted(value)
        return tuple(_settled(v, keep_integers=keep_integers) for v in ordered)
    if isinstance(value, Mapping):
        return {k: _settled(v, keep_integers=keep_integers) for k, v in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and not keep_integers:
        return float(value)
    return value
