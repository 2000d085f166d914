"""Copies of modules with trained weights of their own, sharing all others."""

from collections.abc import Collection

from tinygrad_peft.nn import Module, Parameter

__all__ = ["trained_copy"]


def trained_copy(
    module: Module, names: Collection[str] | None = None, *, fresh: bool = True
) -> Module | None:
    """Copy a module with trained weights of its own: all of them, or those of these names.

    Returns None if it has none of them itself. The arrays are copied if `fresh`, and otherwise
    shared until a folder's arrays replace them. Modules below this one are always shared.
    """
    own = {n: p for n, p in module.own_parameters() if names is None or n in names}
    if not own:
        return None
    copied = {n: Parameter(p.data.copy() if fresh else p.data) for n, p in own.items()}
    return module.with_own_parameters(copied)
