"""PeftConfig, the base class of every method's settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Never, Self, get_args

import numpy as np

from tinygrad_peft.errors import ConfigError, PeftError, listed, nearest
from tinygrad_peft.nn import Module
from tinygrad_peft.peft.configs.file_format import FileFormat
from tinygrad_peft.peft.configs.setting_types import wrong_choices, wrong_types

__all__ = ["PeftConfig", "steps_of"]


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The base of every method's settings: a frozen dataclass, whose class is the method.

    `peft_type` is the method's name in upper case, as Hugging Face PEFT writes it.
    `modules_to_save` names modules to train whole and save with the adapter, by whole segments of
    their paths.
    `not_mergeable` is the reason why the method cannot be merged, if it cannot.
    `learning_rate` is the method's usual peak rate: its weights are trained at it unless a run sets
    another. None, the default, suggests no rate.
    `file_format` describes the method's files, if they differ from the usual ones.

    Making a config raises ConfigError with every problem: setting types that JSON cannot hold,
    values of wrong types, numbers that are not finite, and whatever `problems` finds.
    """

    peft_type: ClassVar[str]
    learning_rate: ClassVar[float | None] = None
    not_mergeable: ClassVar[str] = ""
    file_format: ClassVar[FileFormat[Never]] = FileFormat()
    modules_to_save: Sequence[str] = ()

    def __new__(cls, *_: object, **settings: object) -> Self:
        """Raise ConfigError for settings that the class does not have."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [
            f"{k} = {v!r:.80}{nearest(k, known)}" for k, v in settings.items() if k not in known
        ]
        if unknown:
            there = f"{cls.__name__} has {', '.join(known)}"
            raise ConfigError(f"unknown settings of {cls.__name__}:\n{listed(unknown)}\n{there}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kinds = (field.type, *get_args(field.type))
            whole = float not in kinds or int in kinds
            value = _normalised(getattr(self, field.name), keep_integers=whole)
            object.__setattr__(self, field.name, value)
        # `problems` may rely on the types, but not on the choices.
        problems = [*wrong_types(self)]
        problems = [*problems, *wrong_choices(self), *([] if problems else self.problems())]
        if problems:
            raise ConfigError(f"invalid {type(self).__name__}:\n{listed(problems)}")

    @property
    def keeps_tied(self) -> bool:
        """True if one copy is trained for all places that share a weight, where one is saved."""
        return False

    def problems(self) -> list[str]:
        """List what is wrong with the settings. Subclasses extend super().problems()."""
        return []

    def steps(self) -> tuple["PeftConfig", ...]:
        """Return the steps of these settings, the innermost first: by default, themselves alone.

        A config of several steps is replaced by its steps before a recipe is applied.
        """
        return (self,)

    def flattened(self) -> "PeftConfig":
        """Return the settings of the module from `Reparameterized.flattened`: usually themselves.

        Where they differ, files for other programs hold the flattened settings, and a file beside
        them holds these, for the weights as they are trained.
        """
        return self

    def as_trained(self, modules: Mapping[str, Module]) -> "PeftConfig":  # noqa: ARG002
        """Return settings that make modules of the trained sizes: themselves, by default.

        `modules` maps each path that the method adapted to its module there. A method that prunes
        ranks in training, say, returns a copy with the remaining ranks, which is saved, counted and
        loaded again.
        """
        return self


def steps_of(recipe: PeftConfig | Sequence[PeftConfig]) -> tuple[PeftConfig, ...]:
    """Return the steps of a recipe, or of one config, the innermost first.

    Raises PeftError for an empty recipe, and for a step that is not a config.
    """
    configs = (recipe,) if isinstance(recipe, PeftConfig) else tuple(recipe)
    if not configs:
        raise PeftError("recipe: expected at least one step, got none")
    for step, config in enumerate(configs):
        if not isinstance(config, PeftConfig):
            raise PeftError(f"recipe, step {step}: expected a PeftConfig, got {config!r}")
    return tuple(step for config in configs for step in config.steps())


def _order(value: object) -> tuple[bool, object]:
    """Order numbers by value, and anything else by its text; wrong types are refused later."""
    number = isinstance(value, int | float)
    return (not number, value if number else str(value))


def _normalised(value: object, *, keep_integers: bool) -> object:
    """Return a value as an immutable one in a fixed order: tuples for lists, sets sorted.

    Numbers become Python's own, as a file gives them: integers become floats unless they are kept.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple | set | frozenset):
        ordered = value if isinstance(value, list | tuple) else sorted(value, key=_order)
        return tuple(_normalised(v, keep_integers=keep_integers) for v in ordered)
    if isinstance(value, Mapping):
        return {k: _normalised(v, keep_integers=keep_integers) for k, v in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and not keep_integers:
        return float(value)
    return value
