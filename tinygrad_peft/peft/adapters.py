"""The adapters of one model, and which modules stand in it for them.

Each adapter is the record of a recipe that was applied to the bare base. What stands in a place is
worked out anew whenever anything changes: the base's module, around it the active adapters' one
after another, or what they were merged into. So an adapter is switched, disabled and removed by
putting modules in their places, and the base keeps its exact bits.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tinygrad_peft.errors import PeftError, listed, nearest
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Module, Parameter, Transformer
from tinygrad_peft.peft.merging import merged_modules
from tinygrad_peft.peft.record import Record, Rewrite, stacked
from tinygrad_peft.peft.rows import Batch, by_row
from tinygrad_peft.peft.sites import Seam, capture_seams

__all__ = ["BASE", "Adapters", "check_name"]

BASE = "__base__"  # the name by which a row of a batch asks for no adapter, as in PEFT


class Adapters:
    """The records by name, and what stands in the model for them."""

    def __init__(self, model: Transformer, host: Host) -> None:
        self.model = model
        self.host = host
        self.seams = capture_seams(model)
        self.base = {seam: seam.module for seam in self.seams}
        self.size = model.count()
        self.records: dict[str, Record] = {}
        self.active: tuple[str, ...] = ()
        self.merged: dict[Seam, Module] = {}
        self.rows: dict[Seam, Module] | None = None  # what stands while rows choose
        self.disabled = 0
        self.gone = False

    # ---------- which there are ----------

    def add(self, name: str, record: Record) -> None:
        """Keep a record that was taken off the model, without making it active."""
        self.records[name] = record

    def remove(self, name: str) -> None:
        """Forget an adapter; if none is active then, the first that is left becomes so."""
        left = [other for other in self.records if other != name]
        active = [other for other in self.active if other != name]
        self.activate(active or left[:1])
        del self.records[name]

    def activate(self, names: Sequence[str]) -> None:
        """Let these adapters stand, the first being the innermost.

        Raises PeftError, and changes nothing, where they cannot stand together.
        """
        before, self.active = self.active, tuple(names)
        try:
            self.stand()
        except PeftError:
            self.active = before
            raise

    def require(self, names: Collection[str]) -> None:
        """Raise PeftError, with the nearest names, unless there are such adapters."""
        unknown = [name for name in names if name not in self.records]
        if unknown:
            problems = [f"{name!r}{nearest(name, self.records)}" for name in unknown]
            there = ", ".join(self.records) or "none"
            raise PeftError(f"no such adapter (there are: {there}):\n{listed(problems)}")

    def parameters(self) -> list[Parameter]:
        """What the active adapters added."""
        return [p for name in self.active for p in self.records[name].parameters()]

    def learning_rates(self) -> dict[Parameter, float]:
        """The rates that suit what the active adapters added, where their methods say one."""
        rewrites = (r for name in self.active for r in self.records[name].rewrites)
        return {
            parameter: rewrite.config.learning_rate
            for rewrite in rewrites
            if rewrite.config.learning_rate is not None
            for parameter in rewrite.added.values()
        }

    def grown(self) -> int:
        """How many elements all adapters added."""
        return sum(r.grown for record in self.records.values() for r in record.rewrites)

    # ---------- what stands ----------

    def let_go(self) -> None:
        """Leave the model as it is without adapters, or merged, and never touch it again."""
        self._put(self.base | self.merged)
        self.base, self.merged, self.records, self.active = {}, {}, {}, ()
        self.gone = True

    def stand(self) -> None:
        """Put into each place what belongs there now.

        Raises PeftError, and changes nothing, where the active adapters cannot stand together.
        """
        adapted = self._adapted(self.active) | self.merged  # what cannot be is refused in any case
        if self.rows is not None:
            adapted = self.rows
        self._put(self.base if self.disabled else self.base | adapted)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within the block the base stands alone."""
        self.disabled += 1
        try:
            self.stand()
            yield
        finally:
            self.disabled -= 1
            self.stand()

    @contextmanager
    def by_row(self, names: Sequence[str]) -> Iterator[None]:
        """Within the block each row of a batch goes through the adapter of its name.

        While the base stands alone, it does for all rows.
        """
        self.require({*names} - {BASE})
        if self.merged and not self.disabled:
            raise PeftError("rows cannot choose an adapter while one is merged: unmerge it first")
        own = {name: self._adapted([] if name == BASE else [name]) for name in names}
        touched = {seam for modules in own.values() for seam in modules}
        rows = {s: [own[name].get(s, self.base[s]) for name in names] for s in touched}
        batch = Batch(len(names))
        modules = {seam: by_row(seam, each, batch) for seam, each in rows.items()}
        before, self.rows = self.rows, modules
        try:
            self.stand()
            yield
        finally:
            self.rows = before
            self.stand()

    def merge(self, *, partial: bool) -> None:
        """Let plain modules stand in for the active adapters': see `merged_modules`."""
        stacks = self._stacks(self.active)
        self.merged = merged_modules(stacks, self.base, self.host, partial=partial)
        self.stand()

    def unmerge(self) -> None:
        """Let the adapters' own modules stand again, which merging has not changed."""
        self.merged = {}
        self.stand()

    def settle(self) -> None:
        """Let what the steps put in the base's place, with no weights to train, be the base.

        What it replaced is let go. Raises PeftError where another adapter stands on that.
        """
        settled = {
            rewrite.seam: rewrite
            for record in self.records.values()
            for rewrite in record.rewrites
            if not rewrite.added and not rewrite.wraps
        }
        problems = [
            f"{rewrite.seam.path}: {name!r} stands on what {settled[rewrite.seam].method} replaced"
            for name, record in self.records.items()
            for rewrite in record.rewrites
            if rewrite.seam in settled
            and rewrite not in settled.values()
            and rewrite.before is self.base[rewrite.seam]
        ]
        if problems:
            raise PeftError(f"the base is still needed:\n{listed(problems)}")
        self.base |= {seam: rewrite.after for seam, rewrite in settled.items()}
        for record in self.records.values():
            record.rewrites = [r for r in record.rewrites if r not in settled.values()]
        self.stand()

    def _adapted(self, names: Sequence[str]) -> dict[Seam, Module]:
        """What stands with these adapters where they change anything."""
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
        """The rewrites of each place, the innermost first."""
        stacks: dict[Seam, list[Rewrite]] = {}
        for name in names:
            for rewrite in self.records[name].rewrites:
                stacks.setdefault(rewrite.seam, []).append(rewrite)
        return stacks

    def _put(self, modules: Mapping[Seam, Module]) -> None:
        for seam, module in modules.items():
            if seam.module is not module:
                module.train(mode=self.model.training)  # which it may have missed
                seam.owner.set_child(seam.name, module)


def check_name(name: str, taken: Collection[str]) -> None:
    """Raise PeftError unless a new adapter may be called that."""
    if name in taken:
        raise PeftError(f"there is an adapter called {name!r} already")
    # Folders of steps begin with their number, and an adapter's folder may stand beside them.
    if re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII) is None or name == BASE:
        raise PeftError(
            f"an adapter cannot be called {name!r}: a letter is expected, then letters, digits, "
            "_ and -, since it names a folder"
        )
