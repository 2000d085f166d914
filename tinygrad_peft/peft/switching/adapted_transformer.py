"""An adapted transformer to run: called, trained, generating, counted, disabled and merged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Unpack

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.host import Host
from tinygrad_peft.nn import (
    Generation,
    GenerationSettings,
    LayerCache,
    Module,
    Parameter,
    Transformer,
    TransformerConfig,
)
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.switching.adapters import Adapters
from tinygrad_peft.tensor import Tensor

__all__ = ["AdaptedTransformer"]


class AdaptedTransformer(Module):
    """A transformer and its adapters: the active ones, or one for each row of a batch.

    Several threads may run it at once, each with its own choice of adapters. Its tree of modules
    is what the calling thread or asyncio task would run.
    """

    base_model: Transformer

    def __init__(self, model: Transformer, host: Host) -> None:
        self.base_model = model
        self.host = host
        self.training = model.training
        self._adapters = Adapters(model, host)
        # The base's weights that were trainable; in a list they would be this module's own.
        self._unfrozen: tuple[Parameter, ...] = ()

    @property
    def config(self) -> TransformerConfig:
        """The transformer's settings."""
        return self.base_model.config

    @property
    def adapters(self) -> dict[str, tuple[PeftConfig, ...]]:
        """The recipes of all adapters by name, in the order in which they were added."""
        return {name: record.recipe_as_trained() for name, record in self._adapters.records.items()}

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """The names of the adapters active in this thread or asyncio task, the innermost first."""
        return self._adapters.active

    def _nodes(self) -> Iterator[tuple[str, object]]:
        yield "base_model", self._adapters.view()

    def train(self, *, mode: bool = True) -> None:
        """Switch training mode (dropout) on or off, for all threads."""
        self.training = mode
        self.base_model.train(mode=mode)  # views follow when they are used next

    # ---------- running ----------

    def __call__(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
        prompt_lengths: IntArray | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> Tensor:
        """Run the adapted transformer: see `Transformer.__call__`.

        `adapter_names` names an adapter for each row, or "__base__" for none. By default all rows
        use the active adapters. What another thread sets meanwhile has no effect on the call.

        Raises PeftError for unknown names, for a list that is not one name per row, and while an
        adapter is merged.
        """
        with self._running(adapter_names, len(input_ids)) as transformer:
            return transformer(
                input_ids,
                attention_mask,
                token_type_ids=token_type_ids,
                positions=positions,
                cache=cache,
                prompt_lengths=prompt_lengths,
            )

    def hidden_states(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
        prompt_lengths: IntArray | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> Tensor:
        """Return the last block's output, after the final norm: see `Transformer.hidden_states`.

        `adapter_names`: as for a call.
        """
        with self._running(adapter_names, len(input_ids)) as transformer:
            return transformer.hidden_states(
                input_ids,
                attention_mask,
                token_type_ids=token_type_ids,
                positions=positions,
                cache=cache,
                prompt_lengths=prompt_lengths,
            )

    def pooled(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        adapter_names: Sequence[str] | None = None,
    ) -> Tensor:
        """Return one vector per text (B, D): see `Transformer.pooled`.

        `adapter_names`: as for a call.
        """
        with self._running(adapter_names, len(input_ids)) as transformer:
            return transformer.pooled(input_ids, attention_mask)

    def loss(
        self,
        input_ids: IntArray,
        labels: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        label_smoothing: float = 0.0,
        adapter_names: Sequence[str] | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy: see `Transformer.loss`.

        `adapter_names`: as for a call.
        """
        with self._running(adapter_names, len(input_ids)) as transformer:
            return transformer.loss(
                input_ids, labels, attention_mask, label_smoothing=label_smoothing
            )

    def generate(
        self,
        input_ids: IntArray,
        generation: Generation | None = None,
        *,
        attention_mask: BoolArray | IntArray | None = None,
        on_token: Callable[[IntArray], None] | None = None,
        adapter_names: Sequence[str] | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> IntArray:
        """Continue prompts (B, T): (B, T + new). See `Transformer.generate`.

        `adapter_names`: as for a call. All tokens are made with the adapters that were active at
        the beginning, whatever `on_token` sets.
        """
        with self._running(adapter_names, len(input_ids)) as transformer:
            return transformer.generate(
                input_ids,
                generation,
                attention_mask=attention_mask,
                on_token=on_token,
                **settings,
            )

    def _running(
        self, names: Sequence[str] | None, rows: int
    ) -> AbstractContextManager[Transformer]:
        """Give the transformer that one pass runs, which no later choice changes."""
        if names is not None and (isinstance(names, str) or len(names) != rows):
            raise PeftError(f"adapter_names: expected a list of {rows}, one per row, got {names!r}")
        return self._adapters.running(names)

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """Hold the weights of the active adapters against other threads within the block.

        It begins when no other thread runs these adapters, and until its end none does. A step of
        `train` or `Stepper` changes weights like this; in a loop of your own, put the
        optimiser's step into one if other threads run what it trains.

        Raises PeftError within a pass of the same thread, as in `on_token`.
        """
        with self._adapters.passes.changing(self.active_adapters):
            yield

    # ---------- counting ----------

    def trainable_parameters(self) -> list[Parameter]:
        """List the weights that training would change now: none while the adapter is merged."""
        return [p for p in self.parameters() if p.requires_grad]

    def added_parameters(self) -> tuple[tuple[Parameter, ...], ...]:
        """List the weights that each step of the active adapters added, the innermost first."""
        records = [self._adapters.records[name] for name in self.active_adapters]
        return tuple(
            tuple(record.named_parameters(step).values())
            for record in records
            for step in range(len(record.recipe))
        )

    def learning_rates(self) -> dict[Parameter, float]:
        """Return the peak rate of each parameter whose method names one (active adapters only)."""
        return self._adapters.learning_rates()

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Count elements: (those that the active adapters train, all).

        Merged and disabled adapters count as well. As in Hugging Face PEFT, "all" includes every
        adapter, and both a module copied for `modules_to_save` and its copy.
        """
        trained = (p for p in self._adapters.parameters() if p.requires_grad)
        return count_elements(trained), self._adapters.size + self._adapters.count_added()

    def print_trainable_parameters(self) -> None:
        """Print both counts and their ratio, as Hugging Face PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        print(  # noqa: T201 - this is what it is for
            f"trainable params: {trainable:,} || all params: {total:,} || "
            f"trainable%: {100 * trainable / total:.4f}"
        )

    # ---------- disabling, merging and unloading ----------

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Make the model the base, bit for bit, within the block, merged or not.

        For the calling thread or asyncio task alone. The transformer itself is the base as long as
        any thread is within the block.
        """
        with self._adapters.disable():
            yield

    def merge_adapter(self, *, partial: bool = False) -> None:
        """Replace the modules of the active adapters by plain ones with the same output.

        With `partial`, rewrites that cannot be merged stay, around those that can. Threads that
        have chosen other adapters go on with those, unmerged.

        Raises PeftError, and changes nothing, where a method cannot be merged (all are listed) or
        the adapter is already merged or unloaded.
        """
        with self._merging():
            self._require_adapter()
            if self._adapters.merged:
                raise PeftError("the adapter is already merged")
            self._adapters.merge(partial=partial)

    def unmerge_adapter(self) -> None:
        """Put the adapted modules back, unchanged by merging.

        Raises PeftError if nothing is merged.
        """
        with self._adapters.changing:
            if not self._adapters.merged:
                raise PeftError("the adapter is not merged")
            self._adapters.unmerge()

    def merge_and_unload(self) -> Transformer:
        """Return the transformer with the active adapters folded into its weights.

        This object and the inactive adapters cannot be used afterwards.

        Raises PeftError, and changes nothing, where a method cannot be merged.
        """
        with self._merging():
            self._require_adapter()
            self._adapters.merge(partial=False)
            return self._detached()

    def unload(self) -> Transformer:
        """Return the transformer as it was before, bit for bit.

        This object cannot be used afterwards. Raises PeftError if it was unloaded before.
        """
        with self._adapters.changing:
            if self._adapters.unloaded:
                raise PeftError("there is no adapter: it was unloaded")
            self._adapters.unmerge()
            for parameter in self._unfrozen:
                parameter.requires_grad = True
            return self._detached()

    def release_base(self) -> None:
        """Free the base's weights that a step has replaced by others, such as 4-bit ones.

        They take memory as long as they can be put back. From now on the replacement is the base:
        disabling and `unload` give it.

        Raises PeftError, and changes nothing, where another adapter needs them.
        """
        with self._adapters.changing:
            self._require_adapter()
            self._refuse_merged("releasing the base")
            self._adapters.release_replaced()
            with self._adapters.base_only():
                left = {id(parameter) for parameter in self.base_model.parameters()}
            self._unfrozen = tuple(p for p in self._unfrozen if id(p) in left)

    @contextmanager
    def _merging(self) -> Iterator[None]:
        """Keep other threads from training what is merged, and from changing the model."""
        with self._adapters.passes.running(self.active_adapters), self._adapters.changing:
            yield

    def _detached(self) -> Transformer:
        self._adapters.detach()
        self.base_model.note_untied()
        self._unfrozen = ()
        self.base_model.adapted = False
        return self.base_model

    def _require_adapter(self) -> None:
        if not self._adapters.active:
            raise PeftError("there is no adapter: it was unloaded or deleted")

    def _refuse_merged(self, doing: str) -> None:
        if self._adapters.merged:
            raise PeftError(f"the adapter is merged: unmerge it before {doing}")
