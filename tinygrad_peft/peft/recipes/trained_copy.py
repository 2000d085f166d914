"""Copies of modules with trained weights of their own, sharing all others."""

from collections.abc import Collection

from tinygrad_peft.nn import Module, Parameter

__all__ = ["trained_copy"]


def trained_copy(
    module: Module,
    names: Collection[str] | None = None,
    *,
    fresh: bool = True,
    copies: dict[int, Parameter] | None = None,
) -> Module | None:
    """Copy a module with trained weights of its own: all of them, or those of these names.

    Returns None if it has none of them itself. The arrays are copied if `fresh`, and otherwise
    shared until a folder's arrays replace them. Modules below this one are always shared. `copies`
    holds the copies by the ids of their parameters, for modules that share one.
    """
    own = {n: p for n, p in module.own_parameters() if names is None or n in names}
    if not own:
        return None
    known = {} if copies is None else copies
    for parameter in own.values():
        if id(parameter) not in known:
            known[id(parameter)] = Parameter(parameter.data.copy() if fresh else parameter.data)
    copied = {name: known[id(parameter)] for name, parameter in own.items()}
    return module.with_own_parameters(copied)
