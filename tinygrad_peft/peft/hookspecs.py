"""The hooks of this floor, declared once: what a plugin may answer."""

import re
from collections.abc import Sequence

from tinygrad_peft.host import hookspec
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


def _method_names(kinds: Sequence[type[PeftConfig]]) -> list[str]:
    return [kind.peft_type.lower() for kind in kinds]


def _nameless(kinds: Sequence[type[PeftConfig]]) -> str:
    found = [k.__name__ for k in kinds if not re.fullmatch(r"\w+", getattr(k, "peft_type", ""))]
    return f"{', '.join(found)} needs a peft_type of letters, digits and _" if found else ""


def _left_as_it_was(answer: Module | None, config: PeftConfig, site: Site) -> str:
    del config
    return f"{site.path}: expected a new module, got the site's own" * (answer is site.module)


def _not_merged(answer: Module | None, module: Module) -> str:
    kind = type(module).__name__
    return f"expected a plain module, got the adapted one ({kind})" * (answer is module)


@hookspec(check=_nameless, names=_method_names)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """Provide methods, as their config classes.

    Asked once, when the plugin is registered. A method's name is its `peft_type` in lower case, and
    no other plugin may provide it.
    """
    raise NotImplementedError


@hookspec(check=_left_as_it_was)
def adapt_module(config: PeftConfig, site: Site) -> Module | None:
    """Return the module that stands at this site from now on; None leaves it as it is.

    The answer's new parameters are what the method adds: those that require a gradient are trained,
    and all of them are saved. At most one plugin answers.
    """
    raise NotImplementedError


@hookspec(check=_not_merged)
def merge_module(module: Module) -> Module | None:
    """Return a plain module with the same output; None if this one cannot be merged here.

    At most one plugin answers.
    """
    raise NotImplementedError


@hookspec
def count_parameters(config: PeftConfig, shape: ModelShape) -> ParameterCount | None:
    """Count the parameters that the config adds to a model of that shape, in closed form.

    At most one plugin answers. The caller counts what `modules_to_save` trains.
    """
    raise NotImplementedError


@hookspec
def combine_adapters(config: PeftConfig, combination: Combination) -> Combined | None:
    """Return one step in the place of several adapters' steps; None if this method cannot.

    `config` is the first source's, and all sources are of one method: `combination.configs(Kind)`
    gives all of theirs. At most one plugin answers. The caller combines what `modules_to_save`
    trained.
    """
    raise NotImplementedError


@hookspec
def check_recipe(draft: Draft) -> Sequence[str]:
    """Return why this recipe should not be applied to this model; nothing if it may."""
    raise NotImplementedError


@hookspec
def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
    """Return the step that another library wrote; None if no method of this plugin is in it.

    At most one plugin answers. Raises ConfigError or CheckpointError with all that has no equal
    here.
    """
    raise NotImplementedError


@hookspec
def write_foreign(config: PeftConfig, request: ForeignRequest) -> ForeignStep | None:
    """Return a step for another library; None if this plugin does not write it in that layout.

    `config` has the step's settings as `flattened` gives them. At most one plugin answers. Raises
    ConfigError with all that has no equal there.
    """
    raise NotImplementedError


@hookspec
def recipe_applied(event: Applied) -> None:
    """Observe that a recipe was applied."""
