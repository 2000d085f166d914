"""The hooks: what a plugin may answer. This is their one declaration."""

from collections.abc import Sequence

import pluggy

from tinygrad_peft.nn import Module
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.events import (
    Applied,
    Combination,
    Combined,
    Draft,
    ForeignFolder,
    ForeignRequest,
    ForeignStep,
    ModelShape,
    ParameterCount,
)
from tinygrad_peft.peft.sites import Site

__all__ = [
    "adapt_module",
    "check_recipe",
    "combine_adapters",
    "count_parameters",
    "merge_module",
    "peft_methods",
    "read_foreign",
    "recipe_applied",
    "write_foreign",
]

_spec = pluggy.HookspecMarker("tinygrad_peft")


@_spec
def peft_methods() -> Sequence[type[PeftConfig]]:
    """The methods that this plugin provides, as their config classes."""
    raise NotImplementedError


@_spec
def adapt_module(site: Site, config: PeftConfig) -> Module | None:
    """What shall stand at this site from now on; None leaves it as it is.

    The answer's new parameters are what the method adds: those that require a gradient are trained,
    and all of them are saved. One plugin at most may answer.
    """
    raise NotImplementedError


@_spec
def merge_module(module: Module) -> Module | None:
    """A plain module with the same output as an adapted one; None if this cannot be merged here.

    One plugin at most may answer.
    """
    raise NotImplementedError


@_spec
def count_parameters(config: PeftConfig, shape: ModelShape) -> ParameterCount | None:
    """How many parameters the config adds to a model of that shape, in closed form.

    One plugin at most may answer. What `modules_to_save` trains is counted by the caller.
    """
    raise NotImplementedError


@_spec
def combine_adapters(combination: Combination) -> Combined | None:
    """One step in the place of several adapters' steps; None if this method cannot.

    One plugin at most may answer. What `modules_to_save` trained is combined by the caller.
    """
    raise NotImplementedError


@_spec
def check_recipe(draft: Draft) -> Sequence[str]:
    """Why this recipe should not be applied to this model; nothing if it may."""
    raise NotImplementedError


@_spec
def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
    """The step that another library wrote; None if it is of no method of this plugin.

    One plugin at most may answer. Raises ConfigError or CheckpointError with all that has no
    equal here.
    """
    raise NotImplementedError


@_spec
def write_foreign(request: ForeignRequest) -> ForeignStep | None:
    """A step for another library; None if this plugin does not write this method in its layout.

    One plugin at most may answer. Raises ConfigError with all that has no equal there.
    """
    raise NotImplementedError


@_spec
def recipe_applied(event: Applied) -> None:
    """A recipe was applied."""
