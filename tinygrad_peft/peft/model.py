"""PeftModel: a transformer, and the method that was put into it."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import LayerCache, Module, Parameter, Transformer, TransformerConfig
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft.checkpoint import check_base, load_adapter, read_recipe, save_adapter
from tinygrad_peft.peft.composition import Record, apply_recipe
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.host import Host
from tinygrad_peft.peft.merging import merged_modules
from tinygrad_peft.peft.sites import Seam
from tinygrad_peft.tensor import Tensor

__all__ = ["PeftModel", "get_peft_model"]


class PeftModel(Module):
    """A transformer with a recipe applied to it, in place.

    It is called, trained and evaluated as the transformer is. Made by `get_peft_model` or
    `PeftModel.from_pretrained`.
    """

    base_model: Transformer

    def __init__(self, model: Transformer, record: Record, host: Host) -> None:
        self.base_model = model
        self.record = record
        self.host = host
        self._merged: dict[Seam, Module] = {}
        self._disabled = 0
        self.training = model.training
        model.adapted = True

    # ---------- running ----------

    def __call__(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """What the transformer gives, adapted: see `Transformer.__call__`."""
        return self.base_model(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            positions=positions,
            cache=cache,
        )

    def loss(
        self,
        input_ids: IntArray,
        labels: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The mean cross-entropy: see `Transformer.loss`."""
        return self.base_model.loss(
            input_ids, labels, attention_mask, label_smoothing=label_smoothing
        )

    def generate(
        self,
        input_ids: IntArray,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop_ids: Collection[int] = (),
        seed: int = 0,
        attention_mask: BoolArray | IntArray | None = None,
        pad_id: int = 0,
        on_token: Callable[[IntArray], None] | None = None,
    ) -> IntArray:
        """Continue prompts (B, T): (B, T + new). See `tinygrad_peft.nn.generate.generate`."""
        return self.base_model.generate(
            input_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop_ids=stop_ids,
            seed=seed,
            attention_mask=attention_mask,
            pad_id=pad_id,
            on_token=on_token,
        )

    @property
    def config(self) -> TransformerConfig:
        """The transformer's settings."""
        return self.base_model.config

    @property
    def recipe(self) -> tuple[PeftConfig, ...]:
        """The steps that were applied, the innermost first."""
        return self.record.recipe

    # ---------- counting ----------

    def trainable_parameters(self) -> list[Parameter]:
        """The weights that training would change now: none while the adapter is merged."""
        return [p for p in self.base_model.parameters() if p.requires_grad]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all): how many elements the adapter trains and how many there are.

        They are the adapter's also while it is merged or disabled. As in Hugging Face PEFT, what
        `modules_to_save` has copied counts beside its copy.
        """
        saved = [r.before for r in self.record.rewrites if r.saved]
        originals = (p for module in saved for _, p in module.own_parameters())
        with self._adapted():
            total = count_elements(self.parameters()) + count_elements(originals)
            return count_elements(self.trainable_parameters()), total

    def print_trainable_parameters(self) -> None:
        """Print both counts and their ratio, as Hugging Face PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        print(  # noqa: T201 - this is what it is for
            f"trainable params: {trainable:,} || all params: {total:,} || "
            f"trainable%: {100 * trainable / total:.4f}"
        )

    # ---------- switching ----------

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the block the model is the base, bit for bit, merged or not."""
        self._disabled += 1
        self._stand()
        try:
            yield
        finally:
            self._disabled -= 1
            self._stand()

    def merge_adapter(self) -> None:
        """Let plain modules with the same output stand in for the adapted ones.

        Raises PeftError, and changes nothing, where a method cannot be merged (all are listed) or
        the adapter is merged or unloaded already.
        """
        self._require_adapter()
        if self._merged:
            raise PeftError("the adapter is merged already")
        self._merged = dict(merged_modules(self.record, self.host))
        self._stand()

    def unmerge_adapter(self) -> None:
        """Put the adapted modules back, which merging has not changed.

        Raises PeftError if nothing is merged.
        """
        if not self._merged:
            raise PeftError("the adapter is not merged")
        self._merged = {}
        self._stand()

    def merge_and_unload(self) -> Transformer:
        """The transformer with the adapter folded into its weights; this object is done with.

        Raises PeftError, and changes nothing, where a method cannot be merged.
        """
        self._require_adapter()
        if not self._merged:
            self.merge_adapter()
        for seam, module in self._merged.items():
            seam.put(module)
        return self._let_go()

    def unload(self) -> Transformer:
        """The transformer as it was before, bit for bit; this object is done with.

        Raises PeftError if it was unloaded before.
        """
        self._require_adapter()
        mode = self.base_model.training
        self.record.undo()
        self.base_model.train(mode=mode)
        return self._let_go()

    def _stand(self) -> None:
        """Put into each place what belongs there now: the base's, the merged or the adapted."""
        for seam, stack in self.record.stacks():
            adapted = self._merged.get(seam, stack[-1].after)
            module = stack[0].before if self._disabled else adapted
            module.train(mode=self.base_model.training)  # which it may have missed
            seam.put(module)

    @contextmanager
    def _adapted(self) -> Iterator[None]:
        """Within the block the adapted modules stand, merged or disabled or not."""
        merged, disabled = self._merged, self._disabled
        self._merged, self._disabled = {}, 0
        self._stand()
        try:
            yield
        finally:
            self._merged, self._disabled = merged, disabled
            self._stand()

    def _let_go(self) -> Transformer:
        self.record, self._merged = Record(()), {}
        self.base_model.adapted = False
        return self.base_model

    def _require_adapter(self) -> None:
        if not self.record.recipe:
            raise PeftError("there is no adapter: it was unloaded")

    # ---------- saving ----------

    def save_pretrained(self, directory: str | Path) -> None:
        """Write recipe.json, and adapter_config.json with adapter_model.safetensors for each step.

        Each file is complete or not there. Raises PeftError after `unload`.
        """
        self._require_adapter()
        save_adapter(self.record, self.base_model, Path(directory))

    @classmethod
    def from_pretrained(
        cls,
        model: Transformer,
        directory: str | Path,
        *,
        is_trainable: bool = False,
        host: Host | None = None,
    ) -> "PeftModel":
        """Apply the recipe of a folder to `model`, with the folder's weights.

        The weights are frozen, as in Hugging Face PEFT, unless `is_trainable`.

        Raises:
            CheckpointError: the folder was made for another kind of model or head; or every tensor
                that is missing, unexpected or of another shape.
            PluginError: no plugin provides a step's method.
            TargetError: the model does not have the targets.
        On any of them the model is what it was.
        """
        _refuse_adapted(model)
        host = host or Host.installed()
        recipe = read_recipe(Path(directory), host)
        check_base(model, Path(directory))
        record = apply_recipe(model, recipe, host, loading=True)
        try:
            load_adapter(record, model, Path(directory))
        except BaseException:
            record.undo()
            raise
        peft = cls(model, record, host)
        if not is_trainable:
            peft.freeze()
        return peft

    def load_weights(self, directory: str | Path) -> None:
        """Take the weights of a folder that `save_pretrained` wrote for the same recipe.

        Raises CheckpointError, and changes nothing, unless they fit exactly; PeftError while the
        adapter is merged, since the merged weights would not follow.
        """
        self._require_adapter()
        if self._merged:
            raise PeftError("the adapter is merged: unmerge it before loading weights into it")
        load_adapter(self.record, self.base_model, Path(directory))


def get_peft_model(
    model: Transformer,
    recipe: PeftConfig | Sequence[PeftConfig],
    *,
    seed: int = 0,
    host: Host | None = None,
) -> PeftModel:
    """Apply one config, or a list of them, to `model` in place; the first is the innermost.

    All weights that the model has are frozen; those that the steps add are trained. Each place
    draws its weights from the seed, the step and its path: another step later changes nothing.

    Args:
        model: the transformer, which is changed in place and given back by `unload`.
        recipe: the steps.
        seed: where the new weights start.
        host: the plugins to ask; all that are installed by default.

    Raises:
        TargetError: targets that the model does not have; all of them, with the nearest names.
        PeftError: plugins object, a method has nothing to do, or the model is adapted already.
    On any error the model is what it was.

    >>> from tinygrad_peft.nn import Transformer, TransformerConfig
    >>> from tinygrad_peft_lora import LoraConfig
    >>> config = TransformerConfig(
    ...     vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    ...     intermediate_size=64, max_position_embeddings=16,
    ... )
    >>> peft = get_peft_model(Transformer(config), LoraConfig(r=4, target_modules=["q_proj"]))
    >>> peft.get_nb_trainable_parameters()
    (512, 20800)
    """
    _refuse_adapted(model)
    host = host or Host.installed()
    return PeftModel(model, apply_recipe(model, recipe, host, seed=seed), host)


def _refuse_adapted(model: Transformer) -> None:
    """A second recipe would freeze the first one's weights, and each would save only its own."""
    if model.adapted:
        raise PeftError(
            "the model is adapted already: unload or merge that adapter first, "
            "or give all steps as one recipe"
        )
