"""The modules of several adapters at their seams: one around another, or one for each row.

Each adapter is a record of rewrites of the bare base. These functions install nothing.
"""

from collections.abc import Mapping, Sequence

from tinygrad_peft.errors import PeftError, listed
from tinygrad_peft.nn import Module
from tinygrad_peft.peft.recipes.record import Record, Rewrite, stacked
from tinygrad_peft.peft.sites import Seam
from tinygrad_peft.peft.switching.names import BASE
from tinygrad_peft.peft.switching.per_row import Batch, choose_per_row

__all__ = ["modules_per_row", "stacked_modules", "stacks"]


def stacks(records: Sequence[Record]) -> dict[Seam, list[Rewrite]]:
    """Return the rewrites at each seam, the innermost first."""
    found: dict[Seam, list[Rewrite]] = {}
    for record in records:
        for rewrite in record.rewrites:
            found.setdefault(rewrite.seam, []).append(rewrite)
    return found


def stacked_modules(
    base: Mapping[Seam, Module], records: Mapping[str, Record], names: Sequence[str]
) -> dict[Seam, Module]:
    """Return the modules of adapters around each other, by the seams that they rewrite.

    Raises PeftError that lists every seam where they cannot be active together.
    """
    modules, problems = {}, []
    for seam, rewrites in stacks([records[name] for name in names]).items():
        try:
            modules[seam] = stacked(base[seam], rewrites)
        except PeftError as error:
            problems.append(str(error))
    if problems:
        together = " and ".join(map(repr, names))
        raise PeftError(f"{together} cannot be active together:\n{listed(problems)}")
    return modules


def modules_per_row(
    base: Mapping[Seam, Module], records: Mapping[str, Record], names: Sequence[str]
) -> dict[Seam, Module]:
    """Return modules that run each row of a batch through the adapter of its name."""
    own = {name: stacked_modules(base, records, [] if name == BASE else [name]) for name in names}
    batch = Batch(len(names))
    return {
        seam: choose_per_row(seam, [own[name].get(seam, base[seam]) for name in names], batch)
        for seam in {seam for modules in own.values() for seam in modules}
    }
