"""LoRA's settings, with the names and meanings that Hugging Face PEFT gives them on disk."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tinygrad_peft.errors import failures, nearest
from tinygrad_peft.models import equal_names
from tinygrad_peft.nn import Affine, TokenEmbedding
from tinygrad_peft.peft import (
    PREFIX,
    FileFormat,
    Shapes,
    TargetedConfig,
    broken_expressions,
    dropout_problems,
    full_match,
    matches,
)
from tinygrad_peft_lora.llama_cpp import refused_tensors, unseen_settings

__all__ = ["LoraConfig", "pattern_matches"]

MOST_MODULES = 100  # with trained tokens: a model has one or two
INPUT = "embed_tokens"  # the field of the input embedding, which a bare list of token ids is for
# Starts with a part of W₀, which PEFT subtracts from the base: not for files of other programs.
LEAVING_RESIDUAL = ("pissa", "olora")
OTHER_STARTS = ("eva", "mica")  # of PEFT, in which only A or B differ from the usual ones
STARTS = ("gaussian", *LEAVING_RESIDUAL, "orthogonal", "pissa_niter_4")


def _tensor_key(path: str, name: str) -> str:
    """Return PEFT's name, which has another wrapper around trained vectors of tokens."""
    renamed = {"trainable_tokens_delta": "token_adapter.trainable_tokens_delta"}
    return f"{PREFIX}.{path}.{renamed.get(name, name)}"


def _read_settings(values: Mapping[str, object]) -> Mapping[str, object]:
    """Return PEFT's settings as it uses them.

    It takes starts in any case. Those that leave the base as it is do not matter to trained
    weights: one that is unknown here is read as the usual one.
    """
    used = dict(values)
    start = used.get("init_lora_weights")
    if isinstance(start, str):
        used["init_lora_weights"] = start.lower() in OTHER_STARTS or start.lower()
    if used.get("trainable_token_indices") in ([], {}):
        del used["trainable_token_indices"]
    return used


@dataclass(frozen=True, kw_only=True)
class LoraConfig(TargetedConfig):
    """Low-rank adaptation of affine layers and embeddings.

    r: the rank of the update.
    lora_alpha: the update is scaled by lora_alpha / r.
    lora_dropout: the dropout rate of the low-rank path's input.
    use_rslora: scale by lora_alpha / √r instead (Kalajdzievski 2023, arXiv 2312.03732).
    use_dora: train the magnitude of each row of the weight separately (`dora`).
    lora_bias: give B a trained bias.
    bias: the biases of the base that are trained too: "none", "all", or the targets' own.
    init_lora_weights: True, A Kaiming-uniform and B zero; "gaussian", A ~ N(0, 1/r²) and B zero;
        False, both Kaiming-uniform, which does not start as the identity; "orthogonal", "pissa",
        "pissa_niter_N" or "olora" (`initialisation`).
    rank_pattern, alpha_pattern: other ranks and alphas by path. A key is a regular expression for
        the whole path, or for its end after a dot; the first key that matches counts.
    ensure_weight_tying: train one copy for both ends of a tie, where modules_to_save names one.
    trainable_token_indices: tokens whose vectors are trained whole (`tokens`): a list of ids for
        the input embedding, or a list for each module's name.
    """

    peft_type: ClassVar[str] = "LORA"
    learning_rate: ClassVar[float | None] = 1e-3
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gpt2": ("c_attn",),
        "llama": ("q_proj", "v_proj"),
        "bert": ("query", "value"),
    }
    adapts: ClassVar[tuple[type, ...]] = (Affine, TokenEmbedding)
    layers_need_names: ClassVar[bool] = True

    r: int = 8
    lora_alpha: float = 8.0
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | str = True
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    ensure_weight_tying: bool = False

    @property
    def keeps_tied(self) -> bool:
        """True with `ensure_weight_tying`."""
        return self.ensure_weight_tying

    def problems(self) -> list[str]:
        """List numbers out of range, broken patterns, and settings that exclude one another."""
        return [
            *super().problems(),
            *self._number_problems(),
            *self._start_problems(),
            *broken_expressions("rank_pattern", self.rank_pattern, is_part=True),
            *broken_expressions("alpha_pattern", self.alpha_pattern, is_part=True),
            *self._excluded(),
            *self._token_problems(),
        ]

    def _token_problems(self) -> list[str]:
        named = self.token_ids()
        if len(named) > MOST_MODULES:
            most = f"expected at most {MOST_MODULES} modules, got {len(named):,}"
            return [f"trainable_token_indices: {most}"]
        return [problem for name, ids in named.items() for problem in _id_problems(name, ids)]

    def _number_problems(self) -> list[str]:
        zeros = {name: alpha for name, alpha in self._alphas().items() if not alpha}
        return [
            *(f"the rank {k}={v} must be at least 1" for k, v in self._ranks().items() if v < 1),
            *(f"{name}={alpha} must be a number other than 0" for name, alpha in zeros.items()),
            *dropout_problems(lora_dropout=self.lora_dropout),
        ]

    def _ranks(self) -> dict[str, int]:
        return {"r": self.r, **self.rank_pattern}

    def _alphas(self) -> dict[str, float]:
        return {"lora_alpha": self.lora_alpha, **self.alpha_pattern}

    def _start_problems(self) -> list[str]:
        start = self.init_lora_weights
        if isinstance(start, bool):
            return []
        if not isinstance(start, str) or self.start not in STARTS:
            close = nearest(str(start), STARTS)
            known = "true, false, 'gaussian', 'pissa', 'pissa_niter_N', 'olora' or 'orthogonal'"
            return [f"init_lora_weights={start!r} must be {known}{close}"]
        if start == "orthogonal":
            odd = {name: rank for name, rank in self._ranks().items() if rank % 2}
            return [f"{name}={rank} must be even for {start!r}" for name, rank in odd.items()]
        if self.start == "pissa":
            below = {name: alpha for name, alpha in self._alphas().items() if alpha < 0}
            return [
                f"{name}={alpha} must be above 0 for {start!r}" for name, alpha in below.items()
            ]
        return []

    def _excluded(self) -> list[str]:
        """List settings that exclude one another, here as in PEFT."""
        start = self.init_lora_weights
        rules = {
            "lora_bias and use_dora exclude each other": self.lora_bias and self.use_dora,
            f"lora_bias starts at zero, which excludes init_lora_weights={start!r}": (
                self.lora_bias and not isinstance(start, bool)
            ),
            f"use_dora needs the whole weight, which excludes init_lora_weights={start!r}": (
                self.use_dora and self.leaves_residual
            ),
        }
        return failures(rules)

    @property
    def start(self) -> bool | str:
        """`init_lora_weights` without the iterations: PiSSA's decomposition is exact here."""
        value = self.init_lora_weights
        is_pissa = isinstance(value, str) and re.fullmatch(r"pissa_niter_\d+", value)
        return "pissa" if is_pissa else value

    @property
    def leaves_residual(self) -> bool:
        """True where the update starts as a part of W₀, and the base keeps only the residual."""
        return self.start in LEAVING_RESIDUAL

    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """Return the tokens with trained vectors, by the module's name."""
        ids = self.trainable_token_indices
        if ids is None:
            return {}
        named = ids if isinstance(ids, Mapping) else {INPUT: ids}
        return {name: tuple(own) for name, own in named.items()}

    def contradictions(self, shapes: Shapes) -> list[str]:
        """List matrices of other ranks than the settings', and A or B without the other."""
        found: list[str] = []
        for own, other, axis in (("lora_A", "lora_B", 0), ("lora_B", "lora_A", 1)):
            for name, shape in shapes.items():
                path, matrix, rest = name.rpartition(f".{own}.weight")
                if not matrix or rest or len(shape) != 2:
                    continue
                rank, half = self.rank(path), f"{path}.{other}.weight"
                if shape[axis] != rank:
                    found.append(f"{name}: expected rank {rank}, got shape {shape}")
                if half not in shapes:
                    found.append(f"{name}: {half} is missing")
        return found + self._untargeted(shapes)

    def _untargeted(self, names: Iterable[str]) -> list[str]:
        """List modules with tensors that `target_modules` does not name, as far as it says."""
        targets = self.target_modules
        if targets is None or targets == "all-linear":
            return []
        paths = [path for path, half, _ in (n.rpartition(".lora_A.weight") for n in names) if half]
        called = Counter(p.rpartition(".")[2] for p in paths if not matches(p, targets))
        return [
            f"{n} modules {last!r} have tensors, but are not in target_modules"
            for last, n in called.items()
        ]

    def idle_patterns(self, paths: Collection[str]) -> list[str]:
        """List the patterns that match none of these paths."""
        return [
            f"the pattern {key!r} matches none of the targets"
            for key in dict.fromkeys((*self.rank_pattern, *self.alpha_pattern))
            if not any(pattern_matches(key, path) for path in paths)
        ]

    def llama_cpp_problems(self, names: Collection[str]) -> list[str]:
        """List why llama.cpp refuses a file, or misreads it (`llama_cpp`)."""
        alphas = self.alpha_pattern
        return refused_tensors(names) + unseen_settings(use_rslora=self.use_rslora, alphas=alphas)

    def rank(self, path: str) -> int:
        """Return the rank at a path."""
        return next((v for k, v in self.rank_pattern.items() if pattern_matches(k, path)), self.r)

    def scaling(self, path: str) -> float:
        """Return α/r, or α/√r, at a path."""
        patterns = self.alpha_pattern.items()
        alpha = next((v for k, v in patterns if pattern_matches(k, path)), self.lora_alpha)
        rank = self.rank(path)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def flattened(self) -> "LoraConfig":
        """Return the plain LoRA of twice the rank that equals one on a residual base.

        α grows with r, or with √r, which keeps every scaling.
        """
        if not self.leaves_residual:
            return self
        grown = math.sqrt(2) if self.use_rslora else 2
        return dataclasses.replace(
            self,
            r=2 * self.r,
            lora_alpha=grown * self.lora_alpha,
            rank_pattern={key: 2 * rank for key, rank in self.rank_pattern.items()},
            alpha_pattern={key: grown * alpha for key, alpha in self.alpha_pattern.items()},
            init_lora_weights=True,
        )

    file_format: ClassVar[FileFormat["LoraConfig"]] = FileFormat(
        ignored_settings={
            "fan_in_fan_out": True,  # how the base stores its weights
            "megatron_core": "megatron.core",
            "qalora_group_size": 16,
        },
        training_settings=(
            *("lora_dropout", "fan_in_fan_out", "megatron_core", "runtime_config"),
            *("merge_weights",),  # of PEFT 0.2
            *("eva_config", "velora_config", "monteclora_config"),  # start, backward pass, noise
        ),
        needs={
            "qalora_group_size": ("use_qalora", True),
            "loftq_config": ("init_lora_weights", "loftq"),
            "corda_config": ("init_lora_weights", "corda"),
            "lora_ga_config": ("init_lora_weights", "lora_ga"),
        },
        repairs=_read_settings,
        idle=idle_patterns,
        tensor_key=_tensor_key,
        checks=contradictions,
        ranks=rank,
        llama_cpp=llama_cpp_problems,
    )


def pattern_matches(key: str, path: str) -> bool:
    """Tell whether a pattern's key matches a path, or its end after a dot.

    With the family's prefix or without, it is the same path.
    """
    return any(full_match(rf"(.*\.)?({key})", name) for name in equal_names(path))


def _id_problems(name: str, ids: Sequence[int]) -> list[str]:
    where = f"trainable_token_indices of {name!r}"
    repeated = {i: count for i, count in Counter(ids).items() if count > 1}
    return [
        *([f"{where}: expected at least one id"] if not ids else []),
        *(f"{where}: expected ids of at least 0, got {i}" for i in ids if i < 0),
        *(f"{where}: {i} appears {n} times" for i, n in repeated.items()),
    ]
