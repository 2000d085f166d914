"""Parameters that a recipe trains, counted from sizes alone."""

import dataclasses
from collections.abc import Sequence

from tinygrad_peft.errors import PeftError
from tinygrad_peft.host import Host
from tinygrad_peft.nn import (
    Affine,
    LayerNorm,
    Module,
    RMSNorm,
    Skeleton,
    TokenEmbedding,
    Transformer,
    TransformerConfig,
)
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.configs.base import PeftConfig, steps_of
from tinygrad_peft.peft.hook_types import (
    AffineShape,
    EmbeddingShape,
    ModelShape,
    NormShape,
    ParameterCount,
)
from tinygrad_peft.peft.recipes.apply import checked_targets
from tinygrad_peft.peft.recipes.targets import Targets
from tinygrad_peft.peft.sites import Seam, capture_seams

__all__ = ["count_model", "count_recipe"]


def count_model(model: TransformerConfig) -> int:
    """Count all parameters of a model of that shape; shared ones count once."""
    return count_elements(Transformer(model, Skeleton()).parameters())


def count_recipe(
    model: TransformerConfig, recipe: PeftConfig | Sequence[PeftConfig], host: Host
) -> tuple[int, int]:
    """Count (trainable, all) of a recipe on a model of that shape.

    Equals `PeftModel.get_nb_trainable_parameters`. Needs no weights: each method's plugin counts in
    closed form.

    Raises:
        TargetError: targets that the model does not have.
        PeftError: plugins object to the recipe, or do not count its method.
    """
    steps = steps_of(recipe)
    skeleton = Transformer(model, Skeleton())
    seams = capture_seams(skeleton)
    targets = checked_targets(skeleton, steps, seams, host)
    total = count_elements(skeleton.parameters())
    counts = [
        _count(config, found, seams, ModelShape(model, total, (), 0), host)
        for config, found in zip(steps, targets, strict=True)
    ]
    return sum(c.trainable for c in counts), total + sum(c.added for c in counts)


def _count(
    config: PeftConfig, targets: Targets, seams: Sequence[Seam], bare: ModelShape, host: Host
) -> ParameterCount:
    """Add the parameters of `modules_to_save` to the plugin's count."""
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
        raise PeftError(f"no plugin counts the parameters of {config.peft_type.lower()}")
    saved = sum(
        p.size for s in seams if s.path in targets.saved for _, p in s.module.own_parameters()
    )
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
