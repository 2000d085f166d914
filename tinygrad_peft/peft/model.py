"""PeftModel: a transformer, and the adapters that were put into it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tinygrad_peft.errors import PeftError
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Parameter, Transformer
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.adapters import check_name
from tinygrad_peft.peft.combining import combine_records, fill_record
from tinygrad_peft.peft.composition import apply_recipe
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.events import Applied, CombinationType
from tinygrad_peft.peft.folder_layout import HUGGING_FACE
from tinygrad_peft.peft.record import Record
from tinygrad_peft.peft.running import AdaptedTransformer
from tinygrad_peft.peft.storage.folder import AdapterFolder
from tinygrad_peft.peft.storage.foreign import save_foreign
from tinygrad_peft.peft.storage.layout import known_layouts, layout_called
from tinygrad_peft.peft.storage.load import load_record, warn_of_another_name
from tinygrad_peft.peft.storage.save import save_adapter

__all__ = ["DEFAULT", "PeftModel", "get_peft_model"]

DEFAULT = "default"  # the adapter whose folder is the saved folder itself, as in PEFT


class PeftModel(AdaptedTransformer):
    """A transformer with a recipe applied to it, in place.

    It is called, trained and evaluated as the transformer is. Made by `get_peft_model` or
    `PeftModel.from_pretrained`.
    """

    def __init__(self, model: Transformer, host: Host) -> None:
        super().__init__(model, host)
        self.host = host
        self._unfrozen: tuple[Parameter, ...] = ()  # no list: the base owns them, not this module

    @property
    def recipe(self) -> tuple[PeftConfig, ...]:
        """The steps of the active adapters as training left them, the innermost first."""
        records = self._adapters.records
        return tuple(
            step for name in self.active_adapters for step in records[name].recipe_as_trained()
        )

    @property
    def record(self) -> Record:
        """What applying the first active adapter's recipe did.

        Raises PeftError where there is none.
        """
        self._require_adapter()
        return self._adapters.records[self.active_adapters[0]]

    # ---------- which adapters there are ----------

    @property
    def adapters(self) -> dict[str, tuple[PeftConfig, ...]]:
        """The recipes of all adapters by name, in the order in which they came."""
        return {name: record.recipe_as_trained() for name, record in self._adapters.records.items()}

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """The names of those that act now, the innermost first."""
        return self._adapters.active

    def add_adapter(
        self, name: str, recipe: PeftConfig | Sequence[PeftConfig], *, seed: int = 0
    ) -> None:
        """Make a further adapter for the same base; `set_adapter` makes it act.

        Raises what `get_peft_model` does, and PeftError for a name that is taken or cannot be a
        folder's. On any error nothing has changed.
        """
        self._add(name, lambda: self._applied(recipe, seed=seed))

    def load_adapter(
        self, directory: str | Path | AdapterFolder, name: str, *, is_trainable: bool = False
    ) -> None:
        """Read a further adapter for the same base from a folder; `set_adapter` makes it act.

        Raises what `from_pretrained` does, and PeftError for a name that is taken or cannot be a
        folder's. On any error nothing has changed.
        """
        folder = directory
        if not isinstance(folder, AdapterFolder):
            folder = AdapterFolder.read(folder, self.host)
        warn_of_another_name(self.base_model, folder)
        apply = partial(self._applied, loading=True)
        self._add(name, partial(load_record, folder, self.base_model, apply))
        if not is_trainable:
            for parameter in self._adapters.records[name].parameters():
                parameter.requires_grad = False

    def set_adapter(self, names: str | Sequence[str]) -> None:
        """Let one adapter act, or several at once, one around the other, the first innermost.

        Raises PeftError, and changes nothing, for unknown names, for none,
        where two would replace the same module, and while one is merged.
        """
        chosen = (names,) if isinstance(names, str) else tuple(names)
        self._adapters.require(chosen)
        if not chosen or len(set(chosen)) < len(chosen):
            raise PeftError(f"set_adapter({names!r}): different names are expected, at least one")
        self._refuse_merged("switching")
        self._adapters.activate(chosen)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        *,
        combination_type: CombinationType = "linear",
        rank: int | None = None,
        density: float = 0.5,
        seed: int = 0,
    ) -> dict[str, float]:
        """Make a further adapter whose update is Σ wᵢ ΔWᵢ of others; `set_adapter` makes it act.

        "linear" is that sum exactly, also of low-rank updates of different ranks and scalings: its
        rank is the sum of theirs. With `rank`, what is nearest of that rank. "ties" (Yadav et al.
        2023) keeps the largest elements of each update, a share `density`, and averages those whose
        sign agrees;
        "dare_linear" and "dare_ties" (Yu et al. 2023) keep a share at random, drawn from `seed`.

        Returns for each path the share of the wanted update, in the Frobenius norm, that the rank
        left out; paths that lost nothing are not in it.

        Raises PeftError, and changes nothing, for names that are unknown or taken, weights that are
        too few or many, and adapters of methods that cannot be combined.
        """
        self._adapters.require(adapters)
        check_name(adapter_name, self._adapters.records)
        if len(set(adapters)) < len(adapters):
            raise PeftError(f"adapters {list(adapters)}: one of them is named twice")
        combined = combine_records(
            {name: self._adapters.records[name] for name in adapters},
            weights,
            self.host,
            combination_type=combination_type,
            rank=rank,
            density=density,
            seed=seed,
        )

        def combined_record() -> Record:
            record = self._applied(combined.recipe, loading=True)
            fill_record(record, combined)
            return record

        self._add(adapter_name, combined_record)
        return dict(combined.lost)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter; if none acts then, the first that is left does.

        Raises PeftError, and changes nothing, for an unknown name and while one is merged.
        """
        self._adapters.require([name])
        self._refuse_merged("deleting")
        self._adapters.remove(name)

    def _add(self, name: str, make: Callable[[], Record]) -> None:
        """Keep the record that `make` gives, which stands nowhere in the model."""
        if self._adapters.gone:
            raise PeftError("the adapter was unloaded: get_peft_model adapts the model anew")
        check_name(name, self._adapters.records)
        self._refuse_merged("adding")
        record = make()
        try:
            paths = tuple(rewrite.seam.path for rewrite in record.rewrites)
            applied = Applied(self.base_model, record.recipe, paths, name)
            self.host.each(hookspecs.recipe_applied, applied)
        except BaseException:
            record.thaw()
            raise
        self._unfrozen += tuple(record.unfrozen)
        record.unfrozen = []
        self._adapters.add(name, record)

    def _applied(
        self, recipe: PeftConfig | Sequence[PeftConfig], *, seed: int = 0, loading: bool = False
    ) -> Record:
        """Apply a recipe to the bare base and take it off again."""
        with self._adapters.bare():
            record = apply_recipe(
                self.base_model,
                recipe,
                self.host,
                seed=seed,
                loading=loading,
                seams=self._adapters.seams,
            )
            record.take_off()
        return record

    def _refuse_merged(self, doing: str) -> None:
        if self._adapters.merged:
            raise PeftError(f"the adapter is merged: unmerge it before {doing}")

    # ---------- counting ----------

    def trainable_parameters(self) -> list[Parameter]:
        """The weights that training would change now: none while the adapter is merged."""
        return [p for p in self.base_model.parameters() if p.requires_grad]

    def added_parameters(self) -> tuple[tuple[Parameter, ...], ...]:
        """List the weights that each step of `recipe` added, in its order."""
        records = [self._adapters.records[name] for name in self.active_adapters]
        return tuple(
            tuple(record.named_parameters(step).values())
            for record in records
            for step in range(len(record.recipe))
        )

    def learning_rates(self) -> dict[Parameter, float]:
        """The peak rates that suit what the active adapters added, where their methods say one."""
        return self._adapters.learning_rates()

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all): how many elements the active adapters train, and how many there are.

        They are the adapters' also while they are merged or disabled. As in Hugging Face PEFT, all
        adapters count among all, and what `modules_to_save` has copied counts beside its copy.
        """
        trained = (p for p in self._adapters.parameters() if p.requires_grad)
        return count_elements(trained), self._adapters.size + self._adapters.grown()

    def print_trainable_parameters(self) -> None:
        """Print both counts and their ratio, as Hugging Face PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        print(  # noqa: T201 - this is what it is for
            f"trainable params: {trainable:,} || all params: {total:,} || "
            f"trainable%: {100 * trainable / total:.4f}"
        )

    # ---------- disabling, merging and removing ----------

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the block the model is the base, bit for bit, merged or not."""
        with self._adapters.bare():
            yield

    def merge_adapter(self, *, partial: bool = False) -> None:
        """Let plain modules with the same output stand in for the adapted ones.

        With `partial`, what cannot be merged goes on standing around what can.

        Raises PeftError, and changes nothing, where a method cannot be merged (all are listed) or
        the adapter is merged or unloaded already.
        """
        self._require_adapter()
        if self._adapters.merged:
            raise PeftError("the adapter is merged already")
        self._adapters.merge(partial=partial)

    def unmerge_adapter(self) -> None:
        """Put the adapted modules back, which merging has not changed.

        Raises PeftError if nothing is merged.
        """
        if not self._adapters.merged:
            raise PeftError("the adapter is not merged")
        self._adapters.unmerge()

    def merge_and_unload(self) -> Transformer:
        """The transformer with the active adapters folded into its weights.

        This object is done with, and so are the adapters that do not act.

        Raises PeftError, and changes nothing, where a method cannot be merged.
        """
        self._require_adapter()
        self._adapters.merge(partial=False)
        return self._let_go()

    def unload(self) -> Transformer:
        """The transformer as it was before, bit for bit; this object is done with.

        Raises PeftError if it was unloaded before.
        """
        if self._adapters.gone:
            raise PeftError("there is no adapter: it was unloaded")
        self._adapters.merged = {}
        for parameter in self._unfrozen:
            parameter.requires_grad = True
        return self._let_go()

    def release_base(self) -> None:
        """Forget the base's weights that a step has replaced by others, such as 4-bit ones.

        They take memory as long as they can be put back. From now on the replacement is the base:
        it is what disabling and `unload` give.

        Raises PeftError, and changes nothing, where another adapter needs them.
        """
        self._require_adapter()
        self._refuse_merged("releasing the base")
        self._adapters.settle()
        with self._adapters.bare():
            left = {id(parameter) for parameter in self.base_model.parameters()}
        self._unfrozen = tuple(p for p in self._unfrozen if id(p) in left)

    def _let_go(self) -> Transformer:
        self._adapters.let_go()
        self._unfrozen = ()
        self.base_model.adapted = False
        return self.base_model

    def _require_adapter(self) -> None:
        if not self._adapters.active:
            raise PeftError("there is no adapter: it was unloaded or deleted")

    # ---------- saving ----------

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        adapters: Sequence[str] | None = None,
        flatten: bool = False,
        layout: str = HUGGING_FACE.name,
    ) -> None:
        """Write recipe.json, and adapter_config.json with adapter_model.safetensors for each step.

        The adapter "default" goes into the folder itself, others into folders of their names in it.
        `adapters` names those to be saved, all by default. Weights that are computed from others
        (by a prefix's projection, say) are written with those, for further training, unless
        `flatten`. With `layout`, adapters of one step are written as another library reads them,
        such as "AdapterHub" or "mlx-lm". Each file is complete or not there.

        Raises PeftError after `unload` and for unknown names; ConfigError, and writes nothing, with
        all that a layout cannot hold, and for an unknown layout; CheckpointError where a file or
        folder cannot be written.
        """
        wanted = layout_called(layout, known_layouts(self.host))
        self._require_adapter()
        names = list(self._adapters.records) if adapters is None else list(adapters)
        self._adapters.require(names)
        root = Path(directory)
        folders = {name: root if name == DEFAULT else root / name for name in names}
        records = {name: self._adapters.records[name] for name in names}
        if wanted != HUGGING_FACE:
            save_foreign(records, folders, self.base_model, self.host, wanted)
            return
        for name, record in records.items():
            save_adapter(record, self.base_model, self.host, folders[name], flatten=flatten)

    @classmethod
    def from_pretrained(
        cls,
        model: Transformer,
        directory: str | Path | AdapterFolder,
        *,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        host: Host | None = None,
    ) -> "PeftModel":
        """Apply the recipe of a folder to `model`, with the folder's weights.

        Hugging Face PEFT, AdapterHub or mlx-lm may have written it. The weights are frozen, as in
        Hugging Face PEFT, unless `is_trainable`.

        Raises, with all problems at once, the kind of error that the first one is:
            CheckpointError: the folder was made for another kind of model or head; or every tensor
                that is missing, unexpected or of another shape.
            ConfigError: settings that the method does not have.
            PluginError: no plugin provides a step's method.
            TargetError: the model does not have the targets.

        On any of them the model is what it was.
        """
        _refuse_adapted(model)
        if host is None:
            host = directory.host if isinstance(directory, AdapterFolder) else Host.installed()
        peft = cls(model, host)
        peft.load_adapter(directory, adapter_name, is_trainable=is_trainable)
        peft.set_adapter(adapter_name)
        model.adapted = True
        return peft


def get_peft_model(
    model: Transformer,
    recipe: PeftConfig | Sequence[PeftConfig],
    *,
    adapter_name: str = DEFAULT,
    seed: int = 0,
    host: Host | None = None,
) -> PeftModel:
    """Apply one config, or a list of them, to `model` in place; the first is the innermost.

    All weights that the model has are frozen; those that the steps add are trained. Each place
    draws its weights from the seed, the step and its path: another step later changes nothing.

    Args:
        model: the transformer, which is changed in place and given back by `unload`.
        recipe: the steps.
        adapter_name: what the adapter is called; others can be added.
        seed: where the new weights start.
        host: the plugins to ask; all that are installed by default.

    Raises:
        TargetError: targets that the model does not have; all of them, with the nearest names.
        PeftError: plugins object, a method has nothing to do, or the model is adapted already.
    On any error the model is what it was.
    """
    _refuse_adapted(model)
    peft = PeftModel(model, host or Host.installed())
    peft.add_adapter(adapter_name, recipe, seed=seed)
    peft.set_adapter(adapter_name)
    model.adapted = True
    return peft


def _refuse_adapted(model: Transformer) -> None:
    """A second recipe would freeze the first one's weights, and each would save only its own."""
    if model.adapted:
        raise PeftError(
            "the model is adapted already: unload or merge that adapter first, "
            "or give all steps as one recipe"
        )
