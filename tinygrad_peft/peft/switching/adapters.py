"""The adapters of one model, and the modules that they install in it.

Each adapter is the record of a recipe applied to the base alone. Whenever anything changes, the
module at each seam is computed again: the base's module, wrapped by the active adapters' one after
another, or the module that they were merged into. Switching, disabling and removing an adapter only
install other modules, so the base keeps its exact bits.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tinygrad_peft.errors import PeftError, hinted, listed
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Module, Parameter, Transformer
from tinygrad_peft.peft.recipes.record import Record, Rewrite, stacked
from tinygrad_peft.peft.sites import Seam, capture_seams
from tinygrad_peft.peft.switching.merging import merged_modules
from tinygrad_peft.peft.switching.per_row import Batch, choose_per_row

__all__ = ["BASE", "Adapters", "check_name"]

LONGEST_NAME = 100  # as for the folders of steps; file systems hold 255 bytes, and paths 260
# Windows's devices, which are in every folder, and what training keeps beside an adapter's files.
RESERVED_NAMES = frozenset(
    (
        *("con", "prn", "aux", "nul", "checkpoints"),
        *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10)),
    )
)

BASE = "__base__"  # the name for no adapter, for a row of a batch, as in PEFT


class Adapters:
    """The records by name, and the modules that they install in the model."""

    def __init__(self, model: Transformer, host: Host) -> None:
        self.model = model
        self.host = host
        self.seams = capture_seams(model)
        self.base = {seam: seam.module for seam in self.seams}
        self.size = model.count()
        self.records: dict[str, Record] = {}
        self.active: tuple[str, ...] = ()
        self.merged: dict[Seam, Module] = {}
        self.chosen: dict[Seam, Module] | None = None  # while each row has its adapter
        self.disabled = 0
        self.unloaded = False

    # ---------- adding and activating ----------

    def add(self, name: str, record: Record) -> None:
        """Add a record that is not installed in the model, without activating it."""
        self.records[name] = record

    def remove(self, name: str) -> None:
        """Remove an adapter; if no other is active, activate the first that remains."""
        left = [other for other in self.records if other != name]
        active = [other for other in self.active if other != name]
        self.activate(active or left[:1])
        del self.records[name]

    def activate(self, names: Sequence[str]) -> None:
        """Activate these adapters, the first being the innermost.

        Raises PeftError, and changes nothing, where they cannot be active together.
        """
        before, self.active = self.active, tuple(names)
        try:
            self.install()
        except PeftError:
            self.active = before
            raise

    def require(self, names: Collection[str]) -> None:
        """Raise PeftError for unknown adapters, with the nearest names."""
        unknown = [name for name in names if name not in self.records]
        if unknown:
            problems = [f"{name!r}{close}" for name, close in hinted(unknown, self.records)]
            there = ", ".join(self.records) or "none"
            raise PeftError(f"unknown adapters (there are: {there}):\n{listed(problems)}")

    def parameters(self) -> list[Parameter]:
        """List the parameters that the active adapters added."""
        return [p for name in self.active for p in self.records[name].parameters()]

    def learning_rates(self) -> dict[Parameter, float]:
        """Return the rate of each parameter of the active adapters whose method names one."""
        rewrites = (r for name in self.active for r in self.records[name].rewrites)
        return {
            parameter: rewrite.config.learning_rate
            for rewrite in rewrites
            if rewrite.config.learning_rate is not None
            for parameter in rewrite.added.values()
        }

    def count_added(self) -> int:
        """Count the elements that all adapters added."""
        return sum(r.extra_elements for record in self.records.values() for r in record.rewrites)

    # ---------- installing ----------

    def detach(self) -> None:
        """Leave the model without adapters, or merged, and never change it again."""
        self._put(self.base | self.merged)
        self.base, self.merged, self.records, self.active = {}, {}, {}, ()
        self.unloaded = True

    def install(self) -> None:
        """Install the module that belongs at each seam now.

        Raises PeftError, and changes nothing, where the active adapters cannot be active together.
        """
        adapted = (
            self._adapted(self.active) | self.merged
        )  # conflicts are refused even while disabled
        if self.chosen is not None:
            adapted = self.chosen
        self._put(self.base if self.disabled else self.base | adapted)

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Install the base alone within the block."""
        self.disabled += 1
        try:
            self.install()
            yield
        finally:
            self.disabled -= 1
            self.install()

    @contextmanager
    def per_row(self, names: Sequence[str]) -> Iterator[None]:
        """Run each row of a batch through the adapter of its name within the block.

        While adapters are disabled, all rows use the base.
        """
        self.require({*names} - {BASE})
        if self.merged and not self.disabled:
            raise PeftError("the adapter is merged: unmerge it before choosing adapters per row")
        own = {name: self._adapted([] if name == BASE else [name]) for name in names}
        touched = {seam for modules in own.values() for seam in modules}
        rows = {s: [own[name].get(s, self.base[s]) for name in names] for s in touched}
        batch = Batch(len(names))
        modules = {seam: choose_per_row(seam, each, batch) for seam, each in rows.items()}
        before, self.chosen = self.chosen, modules
        try:
            self.install()
            yield
        finally:
            self.chosen = before
            self.install()

    def merge(self, *, partial: bool) -> None:
        """Install plain modules with the same output: see `merged_modules`."""
        stacks = self._stacks(self.active)
        self.merged = merged_modules(stacks, self.base, self.host, partial=partial)
        self.install()

    def unmerge(self) -> None:
        """Install the adapters' own modules again, unchanged by merging."""
        self.merged = {}
        self.install()

    def release_replaced(self) -> None:
        """Make replacements without trained weights (quantised layers, say) the base itself.

        The layers that they replaced are freed. Raises PeftError where another adapter needs them.
        """
        replaced = {
            rewrite.seam: rewrite
            for record in self.records.values()
            for rewrite in record.rewrites
            if not rewrite.added and not rewrite.wraps and not rewrite.saved
        }
        problems = [
            f"{rewrite.seam.path}: {name!r} needs what {replaced[rewrite.seam].method} replaced"
            for name, record in self.records.items()
            for rewrite in record.rewrites
            if rewrite.seam in replaced
            and rewrite not in replaced.values()
            and rewrite.before is self.base[rewrite.seam]
        ]
        if problems:
            raise PeftError(f"the base is still needed:\n{listed(problems)}")
        self.base |= {seam: rewrite.after for seam, rewrite in replaced.items()}
        for record in self.records.values():
            record.rewrites = [r for r in record.rewrites if r not in replaced.values()]
        self.install()

    def _adapted(self, names: Sequence[str]) -> dict[Seam, Module]:
        """Return the modules that these adapters would install, by seam."""
        modules, problems = {}, []
        for seam, rewrites in self._stacks(names).items():
            try:
                modules[seam] = stacked(self.base[seam], rewrites)
            except PeftError as error:
                problems.append(str(error))
        if problems:
            together = " and ".join(map(repr, names))
            raise PeftError(f"{together} cannot be active together:\n{listed(problems)}")
        return modules

    def _stacks(self, names: Sequence[str]) -> dict[Seam, list[Rewrite]]:
        """Return the rewrites at each seam, the innermost first."""
        stacks: dict[Seam, list[Rewrite]] = {}
        for name in names:
            for rewrite in self.records[name].rewrites:
                stacks.setdefault(rewrite.seam, []).append(rewrite)
        return stacks

    def _put(self, modules: Mapping[Seam, Module]) -> None:
        for seam, module in modules.items():
            if seam.module is not module:
                module.train(mode=self.model.training)  # it may have missed a switch
                seam.owner.set_child(seam.name, module)


def check_name(name: str, taken: Collection[str]) -> None:
    """Raise PeftError unless the name is free and valid for an adapter."""
    if name in taken:
        raise PeftError(f"adapter {name!r} already exists")
    # Folders of steps begin with their number, and an adapter's folder may be beside them.
    if re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII) is None or name == BASE:
        raise PeftError(
            f"adapter name: expected a letter, then letters, digits, _ and - (it names a folder), "
            f"got {name!r:.200}"
        )
    if len(name) > LONGEST_NAME:
        raise PeftError(
            f"adapter name: expected at most {LONGEST_NAME} characters (it names a folder), got "
            f"{len(name):,}: {name!r:.60}..."
        )
    if name.lower() in RESERVED_NAMES:
        raise PeftError(f"adapter name: {name!r} is reserved, and cannot name an adapter's folder")
