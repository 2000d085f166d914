"""Folding adapted modules into plain ones."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from tinygrad_peft.errors import PeftError, listed
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Module, Parameter
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.record import Rewrite, stacked
from tinygrad_peft.peft.sites import Seam

__all__ = ["merged_modules"]


def merged_modules(
    stacks: Mapping[Seam, Sequence[Rewrite]],
    base: Mapping[Seam, Module],
    host: Host,
    *,
    partial: bool = False,
) -> dict[Seam, Module]:
    """For each seam that was rewritten, one plain module with the same output.

    `base` holds what stands there without adapters; where that is no plain layer itself, such as
    one of 4-bit weights, it is made one. With `partial`, what cannot be merged stands around what
    can. Nothing is changed: the caller puts the modules in place.

    Raises:
        PeftError: some cannot be merged, or would not be finite: all of them are listed.
    """
    merged, problems = {}, []
    for seam, inner in base.items():
        stack = stacks.get(seam, ())
        plain = host.one(hookspecs.merge_module, inner)
        if plain is None and not stack:
            continue
        module, left = _folded(inner if plain is None else plain, stack, host)
        if left and not partial:
            why = left[0].config.not_mergeable or "not into what it wraps"
            problems.append(f"{seam.path}: {left[0].method} cannot be merged: {why}")
            continue
        problems += _not_finite(seam, inner, module)
        module.freeze()
        merged[seam] = stacked(module, left)
    if problems:
        raise PeftError(f"the adapter cannot be merged, and nothing was:\n{listed(problems)}")
    _tie(base, merged)
    return merged


def _folded(
    module: Module, stack: Sequence[Rewrite], host: Host
) -> tuple[Module, Sequence[Rewrite]]:
    """As much of a stack as can be folded, the innermost first, onto `module`; and the rest."""
    for done, rewrite in enumerate(stack):
        folded = _fold(rewrite, module, host)
        if folded is None:
            return module, stack[done:]
        module = folded
    return module, ()


def _fold(rewrite: Rewrite, inner: Module, host: Host) -> Module | None:
    """One rewrite folded onto `inner`, which stands for what it was wrapped around."""
    if rewrite.plain:
        frozen = {id(p): p for p in rewrite.after.parameters() if not p.requires_grad}
        twin = copy.deepcopy(rewrite.after, dict[int, object](frozen))  # which share those
        return host.one(hookspecs.merge_module, twin) or twin
    after = rewrite.around(inner) if rewrite.wraps else rewrite.after
    return host.one(hookspecs.merge_module, after)


def _tie(base: Mapping[Seam, Module], merged: Mapping[Seam, Module]) -> None:
    """Let what shared a weight share it again, if both sides were merged into the same values."""
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
    was_finite = all(np.isfinite(p.data).all() for p in before.parameters())
    broken = [name for name, p in after.named_parameters() if not np.isfinite(p.data).all()]
    if not was_finite or not broken:
        return []
    return [f"{seam.path}: {', '.join(broken)} would hold NaN or infinity"]
