"""The settings of bottleneck adapters, which Hugging Face PEFT does not have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from tinygrad_peft.peft import PeftConfig, dropout_problems

__all__ = ["BottleneckAdapterConfig"]

Placement: TypeAlias = Literal["houlsby", "pfeiffer", "parallel"]
Reading: TypeAlias = Literal["sublayer", "residual"]
ActivationName: TypeAlias = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh"]
Dropped: TypeAlias = Literal["bottleneck", "output"]
Start: TypeAlias = Literal["identity", "near_identity"]


@dataclass(frozen=True, kw_only=True)
class BottleneckAdapterConfig(PeftConfig):
    """Bottleneck adapters in the transformer's layers.

    placement: "houlsby", after attention and after the feed-forward layer (Houlsby et al. 2019);
        "pfeiffer", after the feed-forward layer (Pfeiffer et al. 2020); "parallel", beside the
        feed-forward layer, on its own input (He et al. 2022).
    reads: "sublayer", the sublayer's output, or its input for "parallel"; "residual", the hidden
        states: their sum with the sublayer's output, after the norm that follows the sum if any,
        or the states before the sublayer for "parallel". AdapterHub's adapters read the residual.
    bottleneck_dim: the adapter's inner width; 64 without a `reduction_factor`.
    reduction_factor: the inner width is the hidden size divided by this, rounded down.
    activation: "relu", "gelu" (the exact form), "gelu_tanh" (GPT-2's), "silu" or "tanh".
    bias: give both linear layers of the adapter a bias.
    layer_norm: normalise the adapter's input; the residual skips the norm.
    dropout: the dropout rate in training.
    drops: where dropout applies: the activated "bottleneck", or the adapter's "output".
    scaling: the factor on the adapter's output; by default 4 beside the feed-forward layer (He et
        al.), and 1 after it, where the papers have no factor.
    init_weights: "identity", U zero, so that training begins exactly at the base model;
        "near_identity", U and D from N(0, 0.01²), truncated at two deviations (Houlsby et al.).
    layers_to_transform: the numbers of the adapted layers; all by default.
    """

    peft_type: ClassVar[str] = "ADAPTER"
    learning_rate: ClassVar[float | None] = 1e-3
    not_mergeable: ClassVar[str] = "a nonlinearity stands between its two layers"

    placement: Placement = "pfeiffer"
    reads: Reading = "sublayer"
    bottleneck_dim: int | None = None
    reduction_factor: float | None = None
    activation: ActivationName = "relu"
    bias: bool = True
    layer_norm: bool = False
    dropout: float = 0.0
    drops: Dropped = "bottleneck"
    scaling: float | None = None
    init_weights: Start = "identity"
    layers_to_transform: int | Sequence[int] | None = None

    def problems(self) -> list[str]:
        """List invalid sizes and rates, two widths at once, and an empty list of layers."""
        found = [*super().problems(), *self._wrong_sizes(), *dropout_problems(dropout=self.dropout)]
        if self.scaling == 0:
            found.append(f"scaling={self.scaling} must be a number other than 0")
        if isinstance(self.layers_to_transform, Sequence) and not self.layers_to_transform:
            found.append("layers_to_transform is empty: leave it out for all layers")
        return found

    def _wrong_sizes(self) -> list[str]:
        found = []
        dim, factor = self.bottleneck_dim, self.reduction_factor
        if dim is not None and factor is not None:
            found.append(
                f"bottleneck_dim={dim} and reduction_factor={factor:g} both set the inner width: "
                "give one of them"
            )
        if dim is not None and dim < 1:
            found.append(f"bottleneck_dim={dim} must be at least 1")
        if factor is not None and factor < 1:
            found.append(f"reduction_factor={factor:g} must be at least 1")
        return found

    @property
    def slots(self) -> tuple[str, ...]:
        """The adapted fields of a block."""
        sublayers = ("attn", "mlp") if self.placement == "houlsby" else ("mlp",)
        return tuple(f"{s}_residual" for s in sublayers) if self.reads == "residual" else sublayers

    @property
    def scale(self) -> float:
        """The factor on the adapter's output."""
        if self.scaling is not None:
            return self.scaling
        return 4.0 if self.placement == "parallel" else 1.0

    def bottleneck(self, hidden_size: int) -> int:
        """Return the inner width for a hidden size; 0 where the reduction is larger."""
        if self.reduction_factor is not None:
            return int(hidden_size // self.reduction_factor)
        return 64 if self.bottleneck_dim is None else self.bottleneck_dim

    def layers(self, count: int) -> Sequence[int]:
        """Return the numbers of the layers to adapt, of `count`, as they were given."""
        chosen = self.layers_to_transform
        if chosen is None:
            return range(count)
        return (chosen,) if isinstance(chosen, int) else chosen
