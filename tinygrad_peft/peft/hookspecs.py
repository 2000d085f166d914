"""The hooks of `peft`, declared once for plugins to answer."""

import re
from collections.abc import Sequence

from tinygrad_peft.host import hookspec
from tinygrad_peft.nn import Module
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.folder_layout import FolderLayout
from tinygrad_peft.peft.hook_types import (
    Applied,
    Combination,
    Combined,
    Draft,
    ForeignFolder,
    ForeignRequest,
    ForeignStep,
    ModelShape,
    ParameterCount,
    WeightFormat,
)
from tinygrad_peft.peft.sites import Site

__all__ = [
    "adapt_module",
    "check_recipe",
    "combine_adapters",
    "count_parameters",
    "foreign_layouts",
    "merge_module",
    "peft_methods",
    "read_foreign",
    "recipe_applied",
    "weight_formats",
    "write_foreign",
]


def _method_names(kinds: Sequence[type[PeftConfig]]) -> list[str]:
    return [kind.peft_type.lower() for kind in kinds]


def _nameless(kinds: Sequence[type[PeftConfig]]) -> str:
    found = [k.__name__ for k in kinds if not re.fullmatch(r"\w+", getattr(k, "peft_type", ""))]
    return f"{', '.join(found)}: expected a peft_type of letters, digits and _" if found else ""


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
    """Return the module to install at this site; None leaves it unchanged.

    The method adds the new parameters of this module: those that require a gradient are trained,
    and all of them are saved. At most one plugin answers.
    """
    raise NotImplementedError


@hookspec(check=_not_merged)
def merge_module(module: Module) -> Module | None:
    """Return a plain module with the same output; None if this plugin cannot merge it.

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
    """Combine several adapters' steps into one; None if the method cannot.

    `config` is the first source's, and all sources are of one method: `combination.configs(Kind)`
    lists their configs. At most one plugin answers. The caller combines what `modules_to_save`
    trained.
    """
    raise NotImplementedError


@hookspec
def check_recipe(draft: Draft) -> Sequence[str]:
    """List the reasons not to apply this recipe to this model, if any."""
    raise NotImplementedError


@hookspec
def weight_formats() -> Sequence[WeightFormat]:
    """List the formats in which this plugin stores affine layers, for estimates of memory."""
    raise NotImplementedError


@hookspec
def foreign_layouts() -> Sequence[FolderLayout]:
    """List the layouts of other libraries that this plugin reads or writes.

    Several plugins may list the same one, each for its own methods.
    """
    raise NotImplementedError


@hookspec
def read_foreign(folder: ForeignFolder) -> ForeignStep | None:
    """Translate a step that another library wrote; None if it is not of this plugin's methods.

    At most one plugin answers. Raises ConfigError or CheckpointError with everything that has no
    equivalent here.
    """
    raise NotImplementedError


@hookspec
def write_foreign(config: PeftConfig, request: ForeignRequest) -> ForeignStep | None:
    """Translate a step for another library; None if this plugin does not write that layout.

    `config` is the step's flattened config. At most one plugin answers. Raises ConfigError with
    everything that has no equivalent there.
    """
    raise NotImplementedError


@hookspec
def recipe_applied(event: Applied) -> None:
    """Observe that a recipe was applied."""
