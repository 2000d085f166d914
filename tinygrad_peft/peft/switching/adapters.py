"""The adapters of one model, and the modules that they put into it.

Each adapter is the record of a recipe applied to the base alone. The module at a seam follows from
the records: the base's module, wrapped by the active adapters' one after another, or the module
that they were merged into. Switching, disabling and removing an adapter only choose other modules,
so the base keeps its exact bits.

A forward pass runs a view composed of these modules, as the calling context chooses. The model
itself holds the modules of the default choice, or the base's while any context disables them.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock

from tinygrad_peft.errors import PeftError, hinted, listed
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Module, Parameter, Transformer
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.sites import Seam, capture_seams
from tinygrad_peft.peft.switching.choices import Choices
from tinygrad_peft.peft.switching.merging import merged_modules
from tinygrad_peft.peft.switching.names import BASE
from tinygrad_peft.peft.switching.passes import Passes
from tinygrad_peft.peft.switching.stacking import modules_per_row, stacked_modules, stacks
from tinygrad_peft.peft.switching.views import Composer, Mixture, View, Views

__all__ = ["Adapters"]

_NOTHING = Mixture("stacked", ())


class Adapters:
    """The records by name, the choices among them, and the modules of each choice.

    `changing` is held while the model itself is changed, which may take long; `_lock` while a view
    is composed, and while what views are composed of is replaced. Who holds either waits for no
    pass.
    """

    def __init__(self, model: Transformer, host: Host) -> None:
        self.model = model
        self.host = host
        self.seams = capture_seams(model)
        self.base = {seam: seam.module for seam in self.seams}
        self.size = model.count()
        self.records: dict[str, Record] = {}
        self.merged: dict[Seam, Module] = {}
        self.merged_names: tuple[str, ...] = ()
        self.unloaded = False
        self.start(())

    def start(self, default: tuple[str, ...]) -> None:
        """Make what no two models share."""
        self.choices = Choices(default)
        self.passes = Passes()
        self.changing, self._lock = RLock(), RLock()
        self._composer, self._views = Composer(self.base), Views()
        for record in self.records.values():
            self._composer.learn(record.rewrites)
        self._disabling = 0  # how many contexts disable the adapters now

    def __deepcopy__(self, memo: dict[int, object]) -> "Adapters":
        """Copy all adapters; the choice of the calling context becomes the copy's default."""
        shared = {"choices", "passes", "changing", "_lock", "_composer", "_views"}
        kept = {name: value for name, value in vars(self).items() if name not in shared}
        twin = memo[id(self)] = Adapters.__new__(Adapters)
        vars(twin).update(copy.deepcopy(kept, memo))
        twin.start(self.active)
        twin.install()
        return twin

    # ---------- adding and choosing ----------

    @property
    def active(self) -> tuple[str, ...]:
        """The adapters that the calling context has chosen, without those deleted since."""
        own = self.choices.own.names or ()
        return tuple(name for name in own if name in self.records) or self.choices.default

    def add(self, name: str, record: Record) -> None:
        """Add a record that is not installed in the model, without activating it."""
        with self._lock:
            self._composer.learn(record.rewrites)
            self.records[name] = record

    def remove(self, name: str) -> None:
        """Remove an adapter; where no other is active, the first that remains is from now on."""

        def remaining(names: Sequence[str]) -> tuple[str, ...]:
            left = tuple(other for other in names if other != name)
            return left or tuple(other for other in self.records if other != name)[:1]

        with self.changing, self._lock:
            own = self.choices.own
            if own.names is not None:
                self.choices.own = replace(own, names=remaining(own.names))
            self.choices.default = remaining(self.choices.default)
            del self.records[name]
            self._views.drop(name)
            self.install()

    def activate(self, names: Sequence[str]) -> None:
        """Activate these adapters, the first being the innermost, here and by default.

        Raises PeftError, and changes nothing, where they cannot be active together.
        """
        chosen = tuple(names)
        with self.changing, self._lock:
            self._view(Mixture("stacked", chosen))
            self.choices.own = replace(self.choices.own, names=chosen)
            self.choices.default = chosen
            self.install()

    @contextmanager
    def using(self, names: Sequence[str]) -> Iterator[None]:
        """Activate these adapters in the calling context alone, within the block."""
        chosen, before = tuple(names), self.choices.own
        with self._lock:
            self._view(Mixture("stacked", chosen))
        self.choices.own = replace(before, names=chosen)
        try:
            yield
        finally:
            self.choices.own = replace(self.choices.own, names=before.names)

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Choose the base in the calling context, and put it into the model, within the block."""
        before = self.choices.own
        self.choices.own = replace(before, disabled=True)
        try:
            with self.base_only():
                yield
        finally:
            self.choices.own = replace(self.choices.own, disabled=before.disabled)

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

    # ---------- running ----------

    def view(self) -> Transformer:
        """Return what the calling context would run now."""
        return self._chosen(None)[1]

    @contextmanager
    def running(self, rows: Sequence[str] | None) -> Iterator[Transformer]:
        """Give what one pass runs: the calling context's choice, or an adapter for each row.

        While adapters are disabled, all rows use the base. The weights stay as they are meanwhile.
        """
        names, view = self._chosen(rows)
        with self.passes.running(names):
            yield view

    def _chosen(self, rows: Sequence[str] | None) -> tuple[Collection[str], Transformer]:
        with self._lock:
            if self.unloaded:
                return (), self.model
            mixture = self._mixture(rows)
            return frozenset(mixture.names), self._view(mixture).transformer

    def _mixture(self, rows: Sequence[str] | None) -> Mixture:
        """Resolve the calling context's choice. Raises PeftError for rows that cannot be run."""
        if rows is not None:
            self.require({*rows} - {BASE})
        if self.choices.own.disabled:
            return _NOTHING
        if rows is None:
            return self._together(self.active)
        if self.merged:
            raise PeftError("the adapter is merged: unmerge it before choosing adapters per row")
        if len(set(rows)) == 1:
            return _NOTHING if rows[0] == BASE else Mixture("stacked", (rows[0],))
        return Mixture("per row", tuple(rows))

    def _together(self, names: tuple[str, ...]) -> Mixture:
        is_merged = self.merged and names == self.merged_names
        return Mixture("merged" if is_merged else "stacked", names)

    def _view(self, mixture: Mixture) -> View:
        view = self._views.get(mixture)
        if view is None:
            view = self._composed(mixture)
            self._views.keep(mixture, view)
        self._switch(view)
        return view

    def _switch(self, view: View) -> None:
        """Put modules that are not in the model into its mode, since they may have missed it."""
        mode = self.model.training
        if all(module.training is mode for module in view.watched):
            return
        switched = {id(module) for _, module in self.model.named_modules()}
        for _, module in view.transformer.named_modules():
            if id(module) not in switched:
                module.training = mode

    def _composed(self, mixture: Mixture) -> View:
        if mixture.kind == "per row":
            modules = modules_per_row(self.base, self.records, mixture.names)
        else:
            modules = stacked_modules(self.base, self.records, mixture.names)
        if mixture.kind == "merged":
            modules |= self.merged
        return self._composer.view(self.model, self.base | modules)

    # ---------- changing the model ----------

    def install(self) -> None:
        """Put into the model the modules of the default choice, or the base's while disabled."""
        with self.changing, self._lock:
            if self.unloaded:
                return
            wanted = _NOTHING if self._disabling else self._together(self.choices.default)
            self._put(self._view(wanted).modules)

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Put the base alone into the model within the block."""
        with self.changing:
            self._disabling += 1
            self.install()
        try:
            yield
        finally:
            with self.changing:
                self._disabling -= 1
                self.install()

    def merge(self, *, partial: bool) -> None:
        """Choose plain modules with the same output, here and by default: see `merged_modules`."""
        with self.changing:
            names = self.active
            rewrites = stacks([self.records[name] for name in names])
            merged = merged_modules(rewrites, self.base, self.host, partial=partial)
            with self._lock:
                self._views.forget(Mixture("merged", names))
                self.merged, self.merged_names = merged, names
                self.activate(names)

    def unmerge(self) -> None:
        """Choose the adapters' own modules again, unchanged by merging."""
        with self.changing, self._lock:
            self._views.forget(Mixture("merged", self.merged_names))
            self.merged, self.merged_names = {}, ()
            self.install()

    def detach(self) -> None:
        """Leave the model without adapters, or merged, and never change it again."""
        with self.changing, self._lock:
            self._put(self.base | self.merged)
            self._views.clear()
            self.base, self.merged, self.records = {}, {}, {}
            self.choices = Choices()
            self.unloaded = True

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
        with self.changing, self._lock:
            self._views.clear()
            self.base |= {seam: rewrite.after for seam, rewrite in replaced.items()}
            for record in self.records.values():
                record.rewrites = [r for r in record.rewrites if r not in replaced.values()]
            self.install()

    def _put(self, modules: Mapping[Seam, Module]) -> None:
        for seam, module in modules.items():
            if seam.module is not module:
                seam.owner.set_child(seam.name, module)
