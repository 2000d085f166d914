"""An adapted transformer as something to run: called, trained, and made to generate."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.host import Host
from tinygrad_peft.nn import LayerCache, Module, Transformer, TransformerConfig
from tinygrad_peft.peft.adapters import Adapters
from tinygrad_peft.tensor import Tensor

__all__ = ["AdaptedTransformer"]


class AdaptedTransformer(Module):
    """A transformer and its adapters: what acts, or what each row of a batch asks for."""

    base_model: Transformer

    def __init__(self, model: Transformer, host: Host) -> None:
        self.base_model = model
        self.training = model.training
        self._adapters = Adapters(model, host)

    @property
    def config(self) -> TransformerConfig:
        """The transformer's settings."""
        return self.base_model.config

    def __call__(
        self,
        input_ids: IntArray,
        attention_mask: BoolArray | IntArray | None = None,
        *,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
        cache: Sequence[LayerCache] | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> Tensor:
        """What the transformer gives, adapted: see `Transformer.__call__`.

        `adapter_names` names an adapter for each row, or "__base__" for none; by default all rows
        go through the active ones.

        Raises PeftError for names that are unknown or too few or many, or while one is merged.
        """
        with self._by_row(adapter_names, len(input_ids)):
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
        adapter_names: Sequence[str] | None = None,
    ) -> Tensor:
        """The mean cross-entropy: see `Transformer.loss`, and a call for `adapter_names`."""
        with self._by_row(adapter_names, len(input_ids)):
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
        adapter_names: Sequence[str] | None = None,
    ) -> IntArray:
        """Continue prompts (B, T): (B, T + new). See `tinygrad_peft.nn.generate.generate`.

        `adapter_names`: as for a call.
        """
        with self._by_row(adapter_names, len(input_ids)):
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

    def _by_row(self, names: Sequence[str] | None, rows: int) -> AbstractContextManager[None]:
        if names is None:
            return nullcontext()
        if isinstance(names, str) or len(names) != rows:
            raise PeftError(f"adapter_names {names!r}: a list of {rows} is expected, one for a row")
        return self._adapters.by_row(names)
