"""The number of parameters that a step adds, from sizes alone, and a limit for it."""

import dataclasses
from collections.abc import Sequence

from tinygrad_peft.errors import TinygradPeftError
from tinygrad_peft.host import Host
from tinygrad_peft.nn import (
    Affine,
    LayerNorm,
    Module,
    RMSNorm,
    TokenEmbedding,
    Transformer,
)
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.hook_types import (
    AffineShape,
    EmbeddingShape,
    ModelShape,
    NormShape,
    ParameterCount,
)
from tinygrad_peft.peft.recipes.targets import Targets
from tinygrad_peft.peft.sites import Seam

__all__ = ["count_step", "oversized"]

# Elements that any step may add; a step on a large model may add as many as the model has.
MOST = 1_000_000_000


def oversized(
    model: Transformer,
    recipe: Sequence[PeftConfig],
    targets: Sequence[Targets],
    seams: Sequence[Seam],
    host: Host,
) -> list[str]:
    """List the steps that add far more than a model has: nothing is allocated for them."""
    bare = ModelShape(model.config, model.count(), (), 0)
    most = max(MOST, bare.total)
    problems = []
    for i, (config, found) in enumerate(zip(recipe, targets, strict=True)):
        try:
            count = count_step(config, found, seams, bare, host)
        except TinygradPeftError:  # a setting that only matters where the step is trained
            continue
        if count is not None and count.added > most:
            problems.append(
                f"step {i}, {config.peft_type.lower()}: expected at most {most:,} new elements, "
                f"got {count.added:,} ({4 * count.added / 1e9:,.0f} GB in float32)"
            )
    return problems


def count_step(
    config: PeftConfig,
    targets: Targets,
    seams: Sequence[Seam],
    bare: ModelShape,
    host: Host,
) -> ParameterCount | None:
    """Count the parameters of a step, those of `modules_to_save` included.

    `bare` is the model's shape without targets. None if no plugin counts the method.
    """
    affine = {s: _affine_shape(s.path, s.module) for s in seams if isinstance(s.module, Affine)}
    shape = dataclasses.replace(
        bare,
        targets=tuple(shape for seam, shape in affine.items() if seam.path in targets.paths),
        biases=sum(_bias_size(s.module) for s in seams if s.path not in targets.saved),
        embeddings=_embeddings(seams, targets, tied=bare.config.tie_word_embeddings),
        head=next((shape for seam, shape in affine.items() if seam.name == "lm_head"), None),
        norms=_norms(seams, targets),
    )
    count = host.one(hookspecs.count_parameters, config, shape)
    if count is None:
        return None
    own = [p for s in seams if s.path in targets.saved for _, p in s.module.own_parameters()]
    own = list({id(p): p for p in own}.values()) if config.keeps_tied else own
    saved = sum(parameter.size for parameter in own)
    return ParameterCount(count.trainable + saved, count.added + saved)


def _affine_shape(path: str, module: Affine) -> AffineShape:
    assert isinstance(module, Module)
    return AffineShape(path, module.in_features, module.out_features, _bias_size(module) > 0)


def _embeddings(
    seams: Sequence[Seam], targets: Targets, *, tied: bool
) -> tuple[EmbeddingShape, ...]:
    has_head = any(seam.name == "lm_head" for seam in seams)
    return tuple(
        EmbeddingShape(
            path=s.path,
            slot=s.name,
            num_embeddings=s.module.num_embeddings,
            embedding_dim=s.module.embedding_dim,
            tied=tied and has_head and s.name == "embed_tokens",
            is_target=s.path in targets.paths,
        )
        for s in seams
        if isinstance(s.module, TokenEmbedding)
    )


def _norms(seams: Sequence[Seam], targets: Targets) -> tuple[NormShape, ...]:
    return tuple(
        NormShape(s.path, s.module.weight.size, _bias_size(s.module) > 0)
        for s in seams
        if isinstance(s.module, LayerNorm | RMSNorm) and s.path in targets.paths
    )


def _bias_size(module: Module) -> int:
    return sum(p.size for name, p in module.own_parameters() if name == "bias")
