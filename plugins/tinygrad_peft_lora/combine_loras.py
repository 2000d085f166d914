"""One LoRA from several.

Concatenating the factors, with sᵢ in Bᵢ, gives the weighted sum of the updates exactly,

    ΔW = Σ wᵢ Bᵢ Aᵢ = [w₁ B₁, w₂ B₂, ...] [A₁; A₂; ...]

of rank Σ rᵢ. A smaller rank keeps the largest singular values.

A bias of B is an update sᵢ βᵢ of its own. Biases and token vectors that are trained in place of the
base's are updates by their difference: b = b₀ + Σ wᵢ (bᵢ - b₀).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError, listed
from tinygrad_peft.peft import Combination, Combined, weighted_sum
from tinygrad_peft_lora.config import INPUT, LoraConfig
from tinygrad_peft_lora.tokens import trained_ids

__all__ = ["combine_loras"]

A, B, SHIFT = "lora_A.weight", "lora_B.weight", "lora_B.bias"
FACTORS = ((A, B), ("lora_embedding_A", "lora_embedding_B"))
TOKENS = "trainable_tokens_delta"
Factors: TypeAlias = tuple[Array, Array]  # B (out, r) with the scaling in it, and A (r, in)


@dataclass(frozen=True)
class _Part:
    """One adapter's trained arrays at a path, and the base's."""

    weight: float
    scaling: float
    ids: tuple[int, ...]
    own: Mapping[str, Array]
    base: Mapping[str, Array]


def combine_loras(combination: Combination, configs: Sequence[LoraConfig]) -> Combined:
    """Combine several LoRAs, with these configs, into one.

    Raises PeftError for DoRA, whose magnitudes cannot be summed, for LoRAs that train tokens of
    different modules, and for sums that overflow.
    """
    sources = combination.sources
    whole = combination.combination_type == "linear" and combination.rank is None
    if whole and len(sources) == 1 and sources[0].weight == 1:
        return Combined(configs[0], sources[0].tensors)
    _refuse(configs)
    settings = _options(configs)
    tensors: dict[str, Mapping[str, Array]] = {}
    lost: dict[str, float] = {}
    ranks: dict[str, int] = {}
    for place, path in enumerate(dict.fromkeys(p for s in sources for p in s.tensors)):
        parts = _parts(combination, configs, path)
        try:
            factors, lost[path] = _factors(combination, parts, place)
        except OverflowError as error:
            raise PeftError(f"{path}: {error}") from None
        for a, _ in FACTORS:
            if a in factors:
                ranks[path] = len(factors[a])
        tensors[path] = {
            **factors,
            **_shift(combination, settings, parts, factors, place),
            **_bias(combination, settings, parts, place, wrapped=bool(factors)),
            **_tokens(combination, trained_ids(settings, path, INPUT), parts, place),
        }
    lost = {path: share for path, share in lost.items() if share}
    return Combined(_with_ranks(settings, configs, ranks), tensors, lost)


def _refuse(configs: Sequence[LoraConfig]) -> None:
    """Raise PeftError for settings that cannot be combined."""
    problems = []
    if any(config.use_dora for config in configs):
        problems.append("use_dora: magnitudes times directions cannot be summed")
    named = {tuple(sorted(config.token_ids())) for config in configs} - {()}
    if len(named) > 1:
        modules = " and ".join(", ".join(names) for names in sorted(named))
        problems.append(f"trainable_token_indices: expected the same modules, got {modules}")
    if problems:
        raise PeftError(f"cannot combine these LoRAs:\n{listed(problems)}")


def _parts(combination: Combination, configs: Sequence[LoraConfig], path: str) -> list[_Part]:
    return [
        _Part(
            source.weight,
            config.scaling(path),
            trained_ids(config, path, INPUT),
            source.tensors[path],
            source.base.get(path, {}),
        )
        for source, config in zip(combination.sources, configs, strict=True)
        if path in source.tensors
    ]


def _factors(
    how: Combination, parts: Sequence[_Part], place: int
) -> tuple[dict[str, Array], float]:
    """Return the combined A and B, and the share of the update that the rank drops."""
    for a, b in FACTORS:
        pairs = [(p.weight, p.scaling * p.own[b], p.own[a]) for p in parts if a in p.own]
        if pairs:
            (joint_b, joint_a), lost = _joint_factors(how, pairs, place)
            return {a: joint_a, b: joint_b}, lost
    return {}, 0.0


def _joint_factors(
    how: Combination, parts: Sequence[tuple[float, Array, Array]], place: int
) -> tuple[Factors, float]:
    """Return the factors of the combined update, and the share of it that the rank drops."""
    if how.combination_type == "linear":
        b = np.concatenate([weight * b for weight, b, _ in parts], axis=1)  # (out, Σ r)
        a = np.concatenate([a for _, _, a in parts])  # (Σ r, in)
        if how.rank is None or how.rank >= len(a):
            return (b, a), 0.0
        return _truncated(b, a, how.rank)
    update = weighted_sum(how, [(weight, b @ a) for weight, b, a in parts], place)
    rank = sum(len(a) for _, _, a in parts) if how.rank is None else how.rank
    small = np.eye(min(update.shape), dtype=update.dtype)
    b, a = (small, update) if len(small) == len(update) else (update, small)
    return _truncated(b, a, min(rank, len(small)))


def _truncated(b: Array, a: Array, rank: int) -> tuple[Factors, float]:
    """Return the nearest B A of a rank (Eckart and Young 1936), and the rest's relative norm.

    Raises OverflowError where the sum is not finite.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    core = r_b @ r_a.T
    if not np.isfinite(core).all():  # its singular values would not converge
        raise OverflowError(f"the weighted sum of the updates is too large for {core.dtype}")
    u, s, vt = np.linalg.svd(core)
    root = np.sqrt(s[:rank])
    near = (q_b @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ q_a.T)
    wide = s.astype(np.float64)  # squares of large float32 overflow
    whole = float(np.linalg.norm(wide))
    return near, float(np.linalg.norm(wide[rank:])) / whole if whole else 0.0


def _shift(
    how: Combination,
    settings: LoraConfig,
    parts: Sequence[_Part],
    factors: Mapping[str, Array],
    place: int,
) -> dict[str, Array]:
    """Return B's bias at every path if any of the LoRAs has one."""
    if not settings.lora_bias or B not in factors:
        return {}
    shifts = [(p.weight, p.scaling * p.own[SHIFT]) for p in parts if SHIFT in p.own]
    return {SHIFT: weighted_sum(how, shifts, place) if shifts else np.zeros_like(factors[B][:, 0])}


def _bias(
    how: Combination,
    settings: LoraConfig,
    parts: Sequence[_Part],
    place: int,
    *,
    wrapped: bool,
) -> dict[str, Array]:
    """Return the bias that is trained in place of the base's, if any."""
    base = next((p.base["bias"] for p in parts if "bias" in p.base), None)
    if settings.bias == "none" or base is None:
        return {}
    own = [(p.weight, p.own.get("base_layer.bias", p.own.get("bias"))) for p in parts]
    updates = [(weight, bias - base) for weight, bias in own if bias is not None]
    bias = base + weighted_sum(how, updates, place) if updates else base
    return {"base_layer.bias" if wrapped else "bias": bias}


def _tokens(
    how: Combination, ids: Sequence[int], parts: Sequence[_Part], place: int
) -> dict[str, Array]:
    """Return the vectors of all tokens that any of the LoRAs trained."""
    trained = [part for part in parts if TOKENS in part.own]
    if not trained:
        return {}
    base = trained[0].base["weight"]
    updates = []
    for part in trained:
        update = np.zeros((len(ids), base.shape[1]), base.dtype)
        update[[ids.index(i) for i in part.ids]] = part.own[TOKENS] - base[list(part.ids)]
        updates.append((part.weight, update))
    return {TOKENS: base[list(ids)] + weighted_sum(how, updates, place)}


def _options(configs: Sequence[LoraConfig]) -> LoraConfig:
    """Return settings that train everything that any of the LoRAs trains."""
    biases = [config.bias for config in configs]
    with_tokens = [config for config in configs if config.token_ids()]
    tokens = {
        name: tuple(dict.fromkeys(i for c in with_tokens for i in c.token_ids()[name]))
        for config in with_tokens
        for name in config.token_ids()
    }
    of_input = with_tokens and not isinstance(with_tokens[0].trainable_token_indices, Mapping)
    return dataclasses.replace(
        configs[0],
        lora_bias=any(config.lora_bias for config in configs),
        bias=next((kind for kind in ("all", "lora_only") if kind in biases), "none"),
        init_lora_weights=True,
        trainable_token_indices=tokens[INPUT] if of_input else tokens or None,
    )


def _with_ranks(
    settings: LoraConfig, configs: Sequence[LoraConfig], ranks: Mapping[str, int]
) -> LoraConfig:
    """Return settings with scaling 1, α = r, at every path."""
    rank = max(set(ranks.values()), key=lambda r: (list(ranks.values()).count(r), r))
    other = {re.escape(path): r for path, r in ranks.items() if r != rank}
    wheres = {
        (c.target_modules, c.exclude_modules, c.layers_to_transform, c.layers_pattern)
        for c in configs
    }
    if len(wheres) > 1:
        settings = dataclasses.replace(
            settings,
            target_modules=sorted(ranks),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
        )
    return dataclasses.replace(
        settings,
        r=rank,
        lora_alpha=rank,
        rank_pattern=other,
        alpha_pattern=dict(other),
        use_rslora=False,
    )
