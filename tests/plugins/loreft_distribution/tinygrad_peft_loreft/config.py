"""LoReFT's settings, with the names that pyreft gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tinygrad_peft.errors import failures
from tinygrad_peft.peft import FileFormat, PeftConfig

__all__ = ["LoreftConfig"]


@dataclass(frozen=True, kw_only=True)
class LoreftConfig(PeftConfig):
    """Interventions on the hidden states at the ends of each prompt.

    low_rank_dimension: the rank r of the subspace that is edited.
    first_n, last_n: the tokens at the start and at the end of a prompt whose states are edited.
    share_weights: one intervention per layer for both ends, instead of one for each.
    layers: the numbers of the layers whose output is edited; None, all.
    dropout: the share of the edited states that is dropped in training.
    act_fn: the function of W h + b.
    init_weights: "random", as in the paper; "identity", W = R and b = 0, where training begins at
        the base model, bit for bit.
    """

    peft_type: ClassVar[str] = "LOREFT"
    learning_rate: ClassVar[float | None] = 4e-3
    not_mergeable: ClassVar[str] = "it edits the states of some tokens alone"

    low_rank_dimension: int = 4
    first_n: int = 5
    last_n: int = 5
    share_weights: bool = True
    layers: int | Sequence[int] | None = None
    dropout: float = 0.0
    act_fn: Literal["linear", "relu", "gelu", "silu", "tanh"] = "linear"
    init_weights: Literal["random", "identity"] = "random"

    file_format: ClassVar[FileFormat["LoreftConfig"]] = FileFormat(
        ranks=lambda config, _path: config.low_rank_dimension
    )

    def problems(self) -> list[str]:
        """List sizes and rates out of range, and settings that exclude each other."""
        rank, first, last, layers = self.low_rank_dimension, self.first_n, self.last_n, self.layers
        rules = {
            f"low_rank_dimension={rank} must be at least 1": rank < 1,
            f"first_n={first} must be at least 0": first < 0,
            f"last_n={last} must be at least 0": last < 0,
            "first_n=0 and last_n=0 leave no token to edit": first == last == 0,
            f"dropout={self.dropout} must be at least 0 and below 1": not 0 <= self.dropout < 1,
            "layers is empty: leave it out for all layers": (
                isinstance(layers, Sequence) and not layers
            ),
            f"init_weights='identity' needs act_fn='linear', got {self.act_fn!r}": (
                self.init_weights == "identity" and self.act_fn != "linear"
            ),
        }
        return [*super().problems(), *failures(rules)]

    @property
    def interventions(self) -> int:
        """The interventions per layer: 1, or 2 where each end has its own."""
        return 1 if self.share_weights or not (self.first_n and self.last_n) else 2

    def layers_of(self, count: int) -> Sequence[int]:
        """Return the numbers of the layers to edit, in a model with `count` layers."""
        if self.layers is None:
            return range(count)
        return (self.layers,) if isinstance(self.layers, int) else self.layers
