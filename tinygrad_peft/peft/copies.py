"""Copies of modules with trained weights of their own, which share all that is not trained."""

from collections.abc import Collection

from tinygrad_peft.nn import Module, Parameter

__all__ = ["trained_copy"]


def trained_copy(
    module: Module, names: Collection[str] | None = None, *, fresh: bool = True
) -> Module | None:
    """The module with trained weights of its own, all of them or those of these names.

    None if it has none of them itself. The arrays are copied if `fresh`, and otherwise shared until
    those of a folder replace them. What stands below the module is shared in any case.
    """
    own = {n: p for n, p in module.own_parameters() if names is None or n in names}
    if not own:
        return None
    copied = {n: Parameter(p.data.copy() if fresh else p.data) for n, p in own.items()}
    return module.with_own_parameters(copied)
