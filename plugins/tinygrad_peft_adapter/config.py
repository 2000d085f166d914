"""The settings of bottleneck adapters, which Hugging Face PEFT does not have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from tinygrad_peft.peft import PeftConfig

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
    reads: "sublayer", what that layer gives (or takes, for "parallel"); "residual", the hidden
        states in its place: their sum with what the layer gives, normed where a norm comes after
        the sum, or what they were before the layer for "parallel". So AdapterHub has it.
    bottleneck_dim: the adapter's inner width; 64 where `reduction_factor` is not given either.
    reduction_factor: the hidden size divided by this, and rounded down, is the inner width.
    activation: "relu", "gelu" (the exact form), "gelu_tanh" (GPT-2's), "silu" or "tanh".
    bias: whether both of the adapter's maps have a bias.
    layer_norm: whether a layer norm comes before the adapter; the residual passes it by.
    dropout: how much is dropped in training.
    drops: what of, the activated "bottleneck" or the adapter's "output".
    scaling: what the adapter's output is multiplied by; by default 4 beside the feed-forward layer,
        as He et al. have it, and 1 after it, where the papers have no factor.
    init_weights: "identity", the upward map zero, so that training begins at the base model to the
        bit; "near_identity", both maps N(0, 0.01²) cut off at two deviations, as Houlsby et al.
    layers_to_transform: only the layers of these numbers; all by default.
    """

    peft_type: ClassVar[str] = "ADAPTER"
    learning_rate: ClassVar[float | None] = 1e-3
    not_mergeable: ClassVar[str] = "a nonlinearity stands between its two maps"

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
        """List sizes and rates that cannot be, two widths at once, and an empty list."""
        found = [*super().problems(), *self._wrong_sizes()]
        if not 0 <= self.dropout < 1:
            found.append(f"dropout={self.dropout} must be at least 0 and below 1")
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
                f"bottleneck_dim={dim} and reduction_factor={factor:g} both set one width: "
                "give one of them"
            )
        if dim is not None and dim < 1:
            found.append(f"bottleneck_dim={dim} must be at least 1")
        if factor is not None and factor < 1:
            found.append(f"reduction_factor={factor:g} must be at least 1")
        return found

    @property
    def slots(self) -> tuple[str, ...]:
        """The fields of a block that are adapted."""
        sublayers = ("attn", "mlp") if self.placement == "houlsby" else ("mlp",)
        return tuple(f"{s}_residual" for s in sublayers) if self.reads == "residual" else sublayers

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        if self.scaling is not None:
            return self.scaling
        return 4.0 if self.placement == "parallel" else 1.0

    def bottleneck(self, hidden_size: int) -> int:
        """The inner width in a model of that size: 0 where the reduction leaves nothing."""
        if self.reduction_factor is not None:
            return int(hidden_size // self.reduction_factor)
        return 64 if self.bottleneck_dim is None else self.bottleneck_dim

    def layers(self, count: int) -> Sequence[int]:
        """The numbers of the layers to adapt in a model of so many: as they were given, if so."""
        chosen = self.layers_to_transform
        if chosen is None:
            return range(count)
        return (chosen,) if isinstance(chosen, int) else chosen
