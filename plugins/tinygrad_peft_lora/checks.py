"""Checks of recipes with LoRA in them."""

from collections.abc import Mapping, Sequence

from tinygrad_peft.errors import failures, hinted
from tinygrad_peft.nn import Affine, TokenEmbedding
from tinygrad_peft.peft import (
    Draft,
    Seam,
    bias_objections,
    capture_seams,
    is_saved_whole,
    matches,
)
from tinygrad_peft_lora.config import INPUT, LoraConfig
from tinygrad_peft_lora.tokens import shares_weight, trained_ids

__all__ = ["objections"]


def objections(draft: Draft) -> list[str]:
    """List patterns that match no target, biases trained twice, and missing tokens."""
    steps = draft.steps(LoraConfig)
    found = [
        f"step {i}: {problem}"
        for i, config in steps
        if not draft.loading
        for problem in config.idle_patterns(draft.targets[i])
    ]
    found += bias_objections(draft, {i: config.bias for i, config in steps})
    with_tokens = {i: config for i, config in steps if config.token_ids()}
    seams = capture_seams(draft.model) if with_tokens else ()
    return found + [
        f"step {i}: trainable_token_indices: {problem}"
        for i, config in with_tokens.items()
        for problem in (
            *_token_problems(seams, config, draft.targets[i]),
            *_trained_twice(seams, config, {k: c for k, c in with_tokens.items() if k < i}),
        )
    ]


def _token_problems(
    seams: Sequence[Seam], config: LoraConfig, targets: frozenset[str]
) -> list[str]:
    named = [s for s in seams if trained_ids(config, s.path, s.name)]
    return [
        *_unmatched(config, seams),
        *(p for seam in named for p in _place_problems(seam, config, targets)),
        *_untied(seams, config),
    ]


def _trained_twice(
    seams: Sequence[Seam], config: LoraConfig, earlier: Mapping[int, LoraConfig]
) -> list[str]:
    """List tokens that an earlier step trains too."""
    return [
        f"{seam.path}: step {step} already trains token {token}"
        for step, other in earlier.items()
        for seam in seams
        for token in trained_ids(config, seam.path, seam.name)
        if token in trained_ids(other, seam.path, seam.name)
    ]


def _unmatched(config: LoraConfig, seams: Sequence[Seam]) -> list[str]:
    """List names that match no module."""
    if not isinstance(config.trainable_token_indices, dict):
        return [] if any(s.name == INPUT for s in seams) else ["the model has no embedding"]
    ends = sorted({s.path.rpartition(".")[2] for s in seams})
    unmatched = [
        name
        for name in config.trainable_token_indices
        if not any(matches(s.path, [name]) for s in seams)
    ]
    return [f"{name!r} matches no module{close}" for name, close in hinted(unmatched, ends)]


def _place_problems(seam: Seam, config: LoraConfig, targets: frozenset[str]) -> list[str]:
    module, path = seam.module, seam.path
    if isinstance(module, TokenEmbedding):
        size = module.num_embeddings
    elif isinstance(module, Affine) and seam.name == "lm_head":
        size = module.out_features
    else:
        return [f"{path}: expected an embedding or the output layer, got {type(module).__name__}"]
    outside = [i for i in trained_ids(config, path, seam.name) if i >= size]
    rules = {
        f"{path} is a target too": path in targets,
        f"{path} is trained whole by modules_to_save": is_saved_whole(config, path),
    }
    return [*(f"{path} has no token {i} (it has {size})" for i in outside), *failures(rules)]


def _untied(seams: Sequence[Seam], config: LoraConfig) -> list[str]:
    """Refuse trained tokens that would untie the output layer from its embedding."""
    embedding = next((s for s in seams if s.name == INPUT), None)
    head = next((s for s in seams if s.name == "lm_head"), None)
    if embedding is None or head is None or not shares_weight(head.module, embedding.module):
        return []
    own = trained_ids(config, head.path, head.name)
    if not own or own == trained_ids(config, embedding.path, embedding.name):
        return []
    return [f"{head.path} and {embedding.path} share one weight: name both with the same tokens"]
