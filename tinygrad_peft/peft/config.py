"""The settings of a method."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Never, get_args

import numpy as np

from tinygrad_peft.errors import ConfigError, PeftError, listed, shortened
from tinygrad_peft.nn import Module
from tinygrad_peft.peft.file_format import FileFormat
from tinygrad_peft.peft.setting_types import wrong_choices, wrong_types

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
    `not_mergeable` is the reason why the method cannot be merged, if it cannot.
    `learning_rate` is the peak that suits the method as a rule, at which what it added is trained
    where a run names no other. None, the base's, says nothing.
    `file_format` describes the method's files, if they differ from the usual ones.

    Making a config raises ConfigError with all that is wrong: types of settings that JSON cannot
    hold, values of wrong types, numbers that are not finite, and whatever `problems` finds.
    """

    peft_type: ClassVar[str]
    learning_rate: ClassVar[float | None] = None
    not_mergeable: ClassVar[str] = ""
    file_format: ClassVar[FileFormat[Never]] = FileFormat()
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kinds = (field.type, *get_args(field.type))
            whole = float not in kinds or int in kinds
            value = _settled(getattr(self, field.name), keep_integers=whole)
            object.__setattr__(self, field.name, value)
        # `problems` may rely on the types, but not on the choices.
        problems = [*wrong_types(self)]
        problems = [*problems, *wrong_choices(self), *([] if problems else self.problems())]
        if problems:
            raise ConfigError(f"invalid {type(self).__name__}:\n{listed(problems)}")

    def problems(self) -> list[str]:
        """List what is wrong with the settings. A subclass adds to super().problems()."""
        return []

    def steps(self) -> tuple["PeftConfig", ...]:
        """Return the steps that these settings stand for, the innermost first: usually themselves.

        A config that stands for several steps is never in a record: its steps are.
        """
        return (self,)

    def flattened(self) -> "PeftConfig":
        """Return the settings of what `Reparameterized.flattened` gives: usually themselves.

        Where they differ, a file for other programs has those, and a file with these has the
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


@dataclass(frozen=True, kw_only=True)
class NamedTargetsConfig(PeftConfig):
    """Settings of a method that rewrites chosen modules.

    target_modules: a list of names, each of which matches a path that is it or ends with "." and
        it; or one regular expression that matches a whole path; or "all-linear", every affine layer
        but the model's head; or None, the method's usual targets in the model's family.
    exclude_modules: names or a regular expression of the same kind, to be left alone.

    `adapts` holds the kinds of modules that the method can adapt, if the class says: then an entry
    of which it can adapt nothing is refused before anything is applied, and is not counted.
    """

    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None

    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # by model_type
    adapts: ClassVar[tuple[type, ...]] = ()

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


def _order(value: object) -> tuple[bool, object]:
    """Order numbers by value and all else by its text: what cannot be compared is refused later."""
    number = isinstance(value, int | float)
    return (not number, value if number else str(value))


def _settled(value: object, *, keep_integers: bool) -> object:
    """The value as one that does not change with what it was made of, and has one order.

    Its numbers are Python's own, and as they are read from a file: where integers are not kept,
    they are floats.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple | set | frozenset):
        ordered = value if isinstance(value, list | tuple) else sorted(value, key=_order)
        return tuple(_settled(v, keep_integers=keep_integers) for v in ordered)
    if isinstance(value, Mapping):
        return {k: _settled(v, keep_integers=keep_integers) for k, v in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and not keep_integers:
        return float(value)
    return value
