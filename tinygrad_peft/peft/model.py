"""PeftModel: a transformer with adapters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tinygrad_peft.errors import PeftError
from tinygrad_peft.files import replace_earlier_work, saving
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.folder_layout import HUGGING_FACE
from tinygrad_peft.peft.hook_types import Applied, CombinationType
from tinygrad_peft.peft.recipes.apply import apply_recipe
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.storage.folder import AdapterFolder
from tinygrad_peft.peft.storage.foreign import save_foreign
from tinygrad_peft.peft.storage.layout import known_layouts, layout_called
from tinygrad_peft.peft.storage.load import load_record, warn_of_another_name
from tinygrad_peft.peft.storage.save import save_adapter
from tinygrad_peft.peft.switching.adapted_transformer import AdaptedTransformer
from tinygrad_peft.peft.switching.combining import combine_records, fill_record
from tinygrad_peft.peft.switching.names import check_name

__all__ = ["DEFAULT", "PeftModel", "get_peft_model"]

DEFAULT = "default"  # the adapter whose folder is the saved folder itself, as in PEFT


class PeftModel(AdaptedTransformer):
    """A transformer with a recipe applied to it, in place.

    Call, train and evaluate it like the transformer. `get_peft_model` and
    `PeftModel.from_pretrained` make one.
    """

    @property
    def recipe(self) -> tuple[PeftConfig, ...]:
        """The steps of the active adapters as training left them, the innermost first."""
        records = self._adapters.records
        return tuple(
            step for name in self.active_adapters for step in records[name].recipe_as_trained()
        )

    @property
    def record(self) -> Record:
        """The record of applying the first active adapter's recipe.

        Raises PeftError if no adapter is active.
        """
        self._require_adapter()
        return self._adapters.records[self.active_adapters[0]]

    # ---------- adding, switching and deleting ----------

    def add_adapter(
        self, name: str, recipe: PeftConfig | Sequence[PeftConfig], *, seed: int = 0
    ) -> None:
        """Add an adapter on the same base; `set_adapter` activates it.

        Raises the errors of `get_peft_model`, and PeftError for a name that is taken or not a valid
        folder name. Changes nothing on any error.
        """
        self._add(name, lambda: self._applied(recipe, seed=seed))

    def load_adapter(
        self,
        directory: str | Path | AdapterFolder,
        name: str,
        *,
        is_trainable: bool = False,
        allow_nonfinite: bool = False,
    ) -> None:
        """Read another adapter for the same base from a folder; `set_adapter` activates it.

        Raises the errors of `from_pretrained`, and PeftError for a name that is taken or not a
        valid folder name. Changes nothing on any error.
        """
        folder = directory
        if not isinstance(folder, AdapterFolder):
            folder = AdapterFolder.read(folder, self.host)
        warn_of_another_name(self.base_model, folder)
        apply = partial(self._applied, loading=True)
        self._add(
            name,
            lambda: load_record(folder, self.base_model, apply, allow_nonfinite=allow_nonfinite),
        )
        if not is_trainable:
            for parameter in self._adapters.records[name].parameters():
                parameter.requires_grad = False

    def set_adapter(self, names: str | Sequence[str]) -> None:
        """Activate one adapter, or several nested in each other, the first innermost.

        They are active in the calling thread or asyncio task from now on, and by default in every
        other that has not set any itself. The transformer itself holds the default.

        Raises PeftError, and changes nothing, for unknown names, an empty list, two adapters that
        would replace the same module, and while an adapter is merged.
        """
        with self._adapters.changing:
            self._adapters.activate(self._checked(names, "set_adapter"))

    @contextmanager
    def using_adapter(self, names: str | Sequence[str]) -> Iterator[None]:
        """Activate adapters as `set_adapter` does, within the block, and nowhere else.

        Other threads, the default, and the transformer itself stay as they are.

        Raises the errors of `set_adapter`.
        """
        with self._adapters.using(self._checked(names, "using_adapter")):
            yield

    def _checked(self, names: str | Sequence[str], where: str) -> tuple[str, ...]:
        """Return names as a tuple, after the checks of `set_adapter`."""
        chosen = (names,) if isinstance(names, str) else tuple(names)
        self._adapters.require(chosen)
        if not chosen or len(set(chosen)) < len(chosen):
            raise PeftError(f"{where}: expected one or more different names, got {names!r}")
        self._refuse_merged("switching")
        return chosen

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
        """Add an adapter whose update is Σ wᵢ ΔWᵢ of others; `set_adapter` activates it.

        "linear" gives that sum exactly, even for low-rank updates of different ranks and scalings:
        the rank of the sum is the sum of the ranks. With `rank`, the nearest update of that rank.
        "ties" (Yadav et al. 2023) keeps the largest elements of each update, a share `density`, and
        averages those whose signs agree.
        "dare_linear" and "dare_ties" (Yu et al. 2023) keep a random share, drawn from `seed`.

        Returns the share of the update, in the Frobenius norm, that `rank` left out at each path;
        paths without a loss are absent.

        Raises PeftError, and changes nothing, for unknown or taken names, too few or too many
        weights, and methods that cannot be combined.
        """
        self._adapters.require(adapters)
        check_name(adapter_name, self._adapters.records)
        if len(set(adapters)) < len(adapters):
            raise PeftError(f"adapters: expected different names, got {list(adapters)}")
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
        """Remove an adapter; if no other is active, the first remaining one becomes active.

        Raises PeftError, and changes nothing, for an unknown name and while an adapter is merged.
        """
        with self._adapters.changing:
            self._adapters.require([name])
            self._refuse_merged("deleting")
            self._adapters.remove(name)

    def _add(self, name: str, make: Callable[[], Record]) -> None:
        """Add the record that `make` returns, of a recipe that is not installed in the model."""
        with self._adapters.changing:
            if self._adapters.unloaded:
                raise PeftError("the adapter was unloaded: adapt the model again by get_peft_model")
            check_name(name, self._adapters.records)
            self._refuse_merged("adding")
            record = make()
            try:
                paths = tuple(rewrite.seam.path for rewrite in record.rewrites)
                applied = Applied(self.base_model, record.recipe, paths, name)
                self.host.each(hookspecs.recipe_applied, applied)
            except BaseException:
                record.unfreeze_base()
                raise
            self._unfrozen += tuple(record.unfrozen)
            record.unfrozen = []
            self._adapters.add(name, record)

    def _applied(
        self, recipe: PeftConfig | Sequence[PeftConfig], *, seed: int = 0, loading: bool = False
    ) -> Record:
        """Apply a recipe to the base alone, and uninstall it again."""
        with self._adapters.base_only():
            record = apply_recipe(
                self.base_model,
                recipe,
                self.host,
                seed=seed,
                loading=loading,
                seams=self._adapters.seams,
            )
            record.uninstall()
        return record

    # ---------- saving ----------

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        adapters: Sequence[str] | None = None,
        flatten: bool = False,
        layout: str = HUGGING_FACE.name,
        overwrite: bool = False,
    ) -> None:
        """Write recipe.json, and adapter_config.json with adapter_model.safetensors for each step.

        The adapter "default" goes into the folder itself, others into subfolders of their names.
        `adapters` names those to save, all by default. Reparameterised weights (a prefix computed
        by its projection, say) are written together with the weights that they are computed from,
        for further training, unless `flatten`. With `layout`, adapters of one step are written for
        another library, such as "AdapterHub" or "mlx-lm". All is saved or, if that fails, nothing.
        An adapter in the folder is replaced; with `overwrite` no other file of earlier work stays
        either (a model's, say, or metrics.json).

        Raises PeftError after `unload` and for unknown names; ConfigError, and writes nothing, for
        an unknown layout and with everything that the layout cannot hold; CheckpointError where a
        file or folder cannot be written.
        """
        wanted = layout_called(layout, known_layouts(self.host))
        self._require_adapter()
        names = list(self._adapters.records) if adapters is None else list(adapters)
        self._adapters.require(names)
        records = {name: self._adapters.records[name] for name in names}
        with saving(Path(directory)) as save:
            if overwrite:
                replace_earlier_work(save, overwrite=True)
            parts = {name: save if name == DEFAULT else save.within(name) for name in names}
            if wanted != HUGGING_FACE:
                save_foreign(records, parts, self.base_model, self.host, wanted)
                return
            for name, record in records.items():
                save_adapter(record, self.base_model, self.host, parts[name], flatten=flatten)

    @classmethod
    def from_pretrained(
        cls,
        model: Transformer,
        directory: str | Path | AdapterFolder,
        *,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        allow_nonfinite: bool = False,
        host: Host | None = None,
    ) -> "PeftModel":
        """Apply the recipe in a folder to `model`, with the folder's weights.

        The folder may come from Hugging Face PEFT, AdapterHub or mlx-lm. The weights are frozen, as
        in Hugging Face PEFT, unless `is_trainable`. Weights that are NaN or infinite are an error
        that names them, or with `allow_nonfinite` a NonFiniteWarning.

        Raises one error with all problems, of the first problem's class:
            CheckpointError: a folder made for another kind of model or head; or every tensor
                that is missing, unexpected, of another shape or not finite.
            ConfigError: settings that the method does not have.
            PluginError: no plugin provides a step's method.
            TargetError: the model does not have the targets.

        The model is unchanged on any error.
        """
        _refuse_adapted(model)
        if host is None:
            host = directory.host if isinstance(directory, AdapterFolder) else Host.installed()
        peft = cls(model, host)
        peft.load_adapter(
            directory, adapter_name, is_trainable=is_trainable, allow_nonfinite=allow_nonfinite
        )
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

    The model's own weights are frozen; the weights that the steps add are trained. Each module
    draws its weights from the seed, the step and its path alone, so later steps do not change them.

    Args:
        model: the transformer, changed in place; `unload` returns it.
        recipe: the steps.
        adapter_name: the adapter's name; more adapters can be added later.
        seed: the seed of the initial weights.
        host: the plugins to use; all installed ones by default.

    Raises:
        TargetError: every target that the model does not have, with the nearest names.
        PeftError: plugins object, a method finds nothing to adapt, or the model is already adapted.
    The model is unchanged on any error.
    """
    _refuse_adapted(model)
    peft = PeftModel(model, host or Host.installed())
    peft.add_adapter(adapter_name, recipe, seed=seed)
    peft.set_adapter(adapter_name)
    model.adapted = True
    return peft


def _refuse_adapted(model: object) -> None:
    """Refuse a second recipe: it would freeze the first one's weights, and save only its own.

    Raises PeftError for it, and for anything else than a transformer.
    """
    if isinstance(model, AdaptedTransformer):
        raise PeftError(
            "model: expected a Transformer, got a PeftModel: add another adapter by its "
            "load_adapter or add_adapter, or pass the model that its unload() returns"
        )
    if not isinstance(model, Transformer):
        raise PeftError(f"model: expected a Transformer, got {type(model).__name__}")
    if model.adapted:
        raise PeftError(
            "the model is already adapted: unload or merge that adapter first, "
            "or pass all steps as one recipe"
        )
