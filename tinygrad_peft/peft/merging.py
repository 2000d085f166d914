"""Folding adapted modules into plain ones."""

import copy

import numpy as np

from tinygrad_peft.errors import PeftError, listed
from tinygrad_peft.nn import Module
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.composition import Record, Rewrite
from tinygrad_peft.peft.host import Host
from tinygrad_peft.peft.sites import Seam

__all__ = ["merged_modules"]


def merged_modules(record: Record, host: Host) -> list[tuple[Seam, Module]]:
    """For each seam that the record rewrote, one plain module with the same output.

    Nothing is changed: the caller puts the modules in place.

    Raises:
        PeftError: some cannot be merged, or would not be finite: all of them are listed.
    """
    merged, problems = [], []
    for seam, stack in record.stacks():
        module = stack[0].before
        for rewrite in stack:
            folded = _fold(rewrite, module, host)
            if folded is None:
                method = record.recipe[rewrite.step].peft_type.lower()
                problems.append(f"{seam.path}: {method} cannot be merged into what it wraps")
                break
            module = folded
        else:
            problems += _not_finite(seam, stack[0].before, module)
            merged.append((seam, module))
    if problems:
        raise PeftError(f"the adapter cannot be merged, and nothing was:\n{listed(problems)}")
    for _, module in merged:
        module.freeze()
    return merged


def _fold(rewrite: Rewrite, inner: Module, host: Host) -> Module | None:
    """One rewrite folded onto `inner`, which stands for what it was wrapped around."""
    if rewrite.plain and inner is rewrite.before:
        frozen = {id(p): p for p in rewrite.after.parameters() if not p.requires_grad}
        return copy.deepcopy(rewrite.after, dict[int, object](frozen))  # which share those
    after = rewrite.after
    if inner is not rewrite.before:
        after = copy.copy(after)
        for name, value in vars(rewrite.after).items():
            if value is rewrite.before:
                setattr(after, name, inner)
    return host.one(hookspecs.merge_module, after)


def _not_finite(seam: Seam, before: Module, after: Module) -> list[str]:
    was_finite = all(np.isfinite(p.data).all() for p in before.parameters())
    broken = [name for name, p in after.named_parameters() if not np.isfinite(p.data).all()]
    if not was_finite or not broken:
        return []
    return [f"{seam.path}: {', '.join(broken)} would hold NaN or infinity"]
