"""Folding adapted modules into plain ones."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from tinygrad_peft.errors import PeftError, listed
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Module, Parameter
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.recipes.record import Rewrite, stacked
from tinygrad_peft.peft.sites import Seam

__all__ = ["merged_modules"]


def merged_modules(
    stacks: Mapping[Seam, Sequence[Rewrite]],
    base: Mapping[Seam, Module],
    host: Host,
    *,
    partial: bool = False,
) -> dict[Seam, Module]:
    """Return a plain module with the same output for each rewritten seam.

    `base` holds the modules without adapters; those that are not plain layers themselves, such as
    layers of 4-bit weights, are made plain. With `partial`, rewrites that cannot be merged wrap the
    merged ones. Changes nothing: the caller installs the modules.

    Raises:
        PeftError: every module that cannot be merged, or would not be finite.
    """
    merged, problems = {}, []
    for seam, inner in base.items():
        stack = stacks.get(seam, ())
        plain = host.one(hookspecs.merge_module, inner)
        if plain is None and not stack:
            continue
        module, left = _folded(inner if plain is None else plain, stack, host)
        if left and not partial:
            why = left[0].config.not_mergeable or _why_not(left[0], host)
            problems.append(f"{seam.path}: {left[0].method} cannot be merged: {why}")
            continue
        problems += _not_finite(seam, inner, module)
        module.freeze()
        merged[seam] = stacked(module, left)
    if problems:
        raise PeftError(
            f"the adapter cannot be merged, and nothing was changed:\n{listed(problems)}"
        )
    _tie(base, merged)
    return merged


def _why_not(rewrite: Rewrite, host: Host) -> str:
    """Return why a rewrite cannot be folded, for a method that does not say it itself."""
    for answer in host.answers(hookspecs.peft_methods):
        own = type(rewrite.config) in answer.value
        if own and not host.has_hook(answer.plugin.name, hookspecs.merge_module):
            return f"its {answer.plugin.title} has no merge_module"
    return "the wrapped module cannot hold the update"


def _folded(
    module: Module, stack: Sequence[Rewrite], host: Host
) -> tuple[Module, Sequence[Rewrite]]:
    """Fold a stack into `module`, the innermost first; return it and the rewrites left over."""
    for done, rewrite in enumerate(stack):
        folded = _fold(rewrite, module, host)
        if folded is None:
            return module, stack[done:]
        module = folded
    return module, ()


def _fold(rewrite: Rewrite, inner: Module, host: Host) -> Module | None:
    """Fold one rewrite into `inner`, which replaces the module that it wrapped."""
    if rewrite.plain:
        frozen = {id(p): p for p in rewrite.after.parameters() if not p.requires_grad}
        twin = copy.deepcopy(rewrite.after, dict[int, object](frozen))  # shared, not copied
        return host.one(hookspecs.merge_module, twin) or twin
    after = rewrite.rewrapped(inner) if rewrite.wraps else rewrite.after
    return host.one(hookspecs.merge_module, after)


def _tie(base: Mapping[Seam, Module], merged: Mapping[Seam, Module]) -> None:
    """Tie weights again that were tied before, if merging gave both sides the same values."""
    first: dict[int, Parameter] = {}
    for seam, module in merged.items():
        after = dict(module.own_parameters())
        for name, before in base[seam].own_parameters():
            if name not in after:
                continue
            other = first.setdefault(id(before), after[name])
            if other is not after[name] and np.array_equal(other.data, after[name].data):
                setattr(module, name, other)


def _not_finite(seam: Seam, before: Module, after: Module) -> list[str]:
    """List the weights with NaN or infinity: the base's own, or else those that merging makes."""
    for module, holds in ((before, "of the base holds"), (after, "would hold")):
        broken = [n for n, p in module.named_parameters() if not np.isfinite(p.data).all()]
        if broken:
            return [f"{seam.path}: {', '.join(broken)} {holds} NaN or infinity"]
    return []
