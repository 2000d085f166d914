"""AdaLoRA's settings, with the names and meanings that Hugging Face PEFT gives them on disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from tinygrad_peft.errors import failures
from tinygrad_peft.models import equal_names
from tinygrad_peft.nn import Affine, Module
from tinygrad_peft.peft import FileFormat, Shapes, TargetedConfig, dropout_problems

__all__ = ["AdaLoraConfig", "Pruned"]

# Settings of LoRA that PEFT writes for AdaLoRA too, and does not use there.
UNUSED = (
    *("r", "alpha_pattern", "lora_bias", "use_rslora", "fan_in_fan_out", "merge_weights"),
    *("megatron_config", "megatron_core", "use_qalora", "qalora_group_size", "layer_replication"),
    *("eva_config", "corda_config", "lora_ga_config", "velora_config", "monteclora_config"),
    *("arrow_config", "kasa_config", "use_bdlora", "ensure_weight_tying", "runtime_config"),
    *("loftq_config", "target_parameters"),
)
# Settings of a training run.
TRAINING = (
    *("tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
    *("lora_dropout", "init_lora_weights"),
)


@runtime_checkable
class Pruned(Protocol):
    """A layer that tells which of its triplets are left, and after how many steps."""

    @property
    def pattern(self) -> tuple[bool, ...]:
        """One entry per initial triplet, true if it is left: (init_r,)."""
        ...

    @property
    def total_step(self) -> int | None:
        """The length of the run that prunes it; None before its first step."""
        ...


def read_settings(values: Mapping[str, object]) -> Mapping[str, object]:
    """Return PEFT's settings as it uses them.

    It takes any name of a start for true, and writes a `target_r` outside
    1 to `init_r`, with which it cannot train.
    """
    used = dict(values)
    if isinstance(start := used.get("init_lora_weights"), str):
        used["init_lora_weights"] = bool(start)
    target, most = used.get("target_r"), used.get("init_r", AdaLoraConfig.init_r)
    if isinstance(target, int) and isinstance(most, int):
        used["target_r"] = max(1, min(target, most))
    return used


@dataclass(frozen=True, kw_only=True)
class AdaLoraConfig(TargetedConfig):
    """Low-rank adaptation of affine layers whose ranks are allocated in training.

    init_r: the rank of each update at first.
    target_r: the mean rank at the end, at most init_r.
    tinit: the steps before the budget starts to fall.
    tfinal: the last steps, in which it falls no more and the ranks are settled.
    deltaT: the steps from one allocation to the next.
    beta1, beta2: how slowly sensitivity and uncertainty are averaged, each between 0 and 1.
    orth_reg_weight: the weight of the orthogonality penalty in the loss.
    total_step: the length of the run by which the budget falls; None for the first run's own. PEFT
        does not read None.
    lora_alpha: the update is scaled by lora_alpha / init_r; at or below 0, by 1.
    lora_dropout: how much of the low-rank path's input is dropped in training.
    bias: which of the base's biases are trained as well: "none", "all", or those of the targets.
    init_lora_weights: True, the vectors are drawn from N(0, 0.02²) and the values start at zero;
        False, all are drawn from N(0, 1), which does not start as the identity.
    rank_pattern: the triplets that are left of the initial ones, by the path of the layer and
        ".lora_E"; layers without an entry have all.
    """

    peft_type: ClassVar[str] = "ADALORA"
    learning_rate: ClassVar[float | None] = 1e-2
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("q_proj", "v_proj"),
        "bert": ("query", "value"),
    }
    adapts: ClassVar[tuple[type, ...]] = (Affine,)
    layers_need_names: ClassVar[bool] = True

    init_r: int = 12
    target_r: int = 8
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1  # noqa: N815 - PEFT's name
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    lora_alpha: float = 8.0
    lora_dropout: float = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool = True
    rank_pattern: Mapping[str, Sequence[bool]] | None = None

    def problems(self) -> list[str]:
        """List numbers out of range, a budget without time, and patterns of other lengths."""
        rules = {
            f"init_r={self.init_r}: expected at least 1": self.init_r < 1,
            f"target_r={self.target_r}: expected 1 to init_r={self.init_r}": (
                not 1 <= self.target_r <= self.init_r
            ),
            f"tinit={self.tinit}: expected at least 0": self.tinit < 0,
            f"tfinal={self.tfinal}: expected at least 0": self.tfinal < 0,
            f"deltaT={self.deltaT}: expected at least 1": self.deltaT < 1,
            f"beta1={self.beta1}: expected a number between 0 and 1": not 0 < self.beta1 < 1,
            f"beta2={self.beta2}: expected a number between 0 and 1": not 0 < self.beta2 < 1,
            f"orth_reg_weight={self.orth_reg_weight}: expected at least 0": (
                self.orth_reg_weight < 0
            ),
        }
        return [
            *super().problems(),
            *dropout_problems(lora_dropout=self.lora_dropout),
            *failures(rules),
            *([] if self.total_step is None else self.time_problems(self.total_step)),
            *(
                f"rank_pattern of {path}: expected init_r={self.init_r} entries, got {len(kept)}"
                for path, kept in (self.rank_pattern or {}).items()
                if len(kept) != self.init_r
            ),
        ]

    def time_problems(self, total: int) -> list[str]:
        """Return the reason why the budget cannot fall in a run of `total` steps, if any."""
        if self.tinit + self.tfinal < total:
            return []
        needed = f"tinit={self.tinit} and tfinal={self.tfinal}"
        return [f"the budget falls in no step: expected more than {needed} steps, got {total}"]

    @property
    def scaling(self) -> float:
        """α/r, with PEFT's guard against a rank of zero, where r stays the initial rank."""
        alpha = self.lora_alpha if self.lora_alpha > 0 else self.init_r
        return alpha / (self.init_r + 1e-5)

    def kept(self, path: str) -> tuple[bool, ...]:
        """Return which of the initial triplets are left at a path: (init_r,)."""
        kept = self._pattern(path)
        return (True,) * self.init_r if kept is None else tuple(kept)

    def _pattern(self, path: str) -> Sequence[bool] | None:
        """Return the pattern of a path by any of its names; None where no triplet is pruned."""
        keys = (f"{name}.lora_E" for name in equal_names(path))
        patterns = self.rank_pattern or {}
        return next((patterns[key] for key in keys if key in patterns), None)

    def rank(self, path: str) -> int:
        """Return the rank at a path."""
        kept = self._pattern(path)
        return self.init_r if kept is None else sum(kept)

    def as_trained(self, modules: Mapping[str, Module]) -> "AdaLoraConfig":
        """Return the settings with the triplets that are left, and the length of the run."""
        layers = {path: m for path, m in modules.items() if isinstance(m, Pruned)}
        pattern = {f"{path}.lora_E": layer.pattern for path, layer in layers.items()}
        total = next((m.total_step for m in layers.values() if m.total_step), None)
        return dataclasses.replace(
            self,
            rank_pattern=None if all(map(all, pattern.values())) else pattern,
            total_step=self.total_step or total,
        )

    def contradictions(self, shapes: Shapes) -> list[str]:
        """List tensors of other ranks than the settings give them, and incomplete triplets."""
        found: list[str] = []
        for name, shape in shapes.items():
            path, _, own = name.rpartition(".")
            if own not in ("lora_A", "lora_B", "lora_E"):
                continue
            rank, axis = self.rank(path), 1 if own == "lora_B" else 0
            if len(shape) != 2 or shape[axis] != rank:
                found.append(f"{name} is {shape}, and the settings give it the rank {rank}")
            found += [
                f"{name} is there without {path}.{other}"
                for other in ("lora_A", "lora_B", "lora_E")
                if f"{path}.{other}" not in shapes
            ]
        return found

    file_format: ClassVar[FileFormat["AdaLoraConfig"]] = FileFormat(
        ignored_settings={
            "fan_in_fan_out": True,  # how the base stores its weights
            "r": 8,
            "megatron_core": "megatron.core",
            "qalora_group_size": 16,
        },
        training_settings=(*UNUSED, *TRAINING),
        repairs=read_settings,
        checks=contradictions,
        ranks=rank,
    )
