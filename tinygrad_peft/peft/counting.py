"""How many parameters a recipe trains, from sizes alone."""

from collections.abc import Sequence

from tinygrad_peft.errors import PeftError, TargetError, listed
from tinygrad_peft.nn import Affine, Module, Skeleton, Transformer, TransformerConfig
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.events import AffineShape, ModelShape, ParameterCount
from tinygrad_peft.peft.host import Host
from tinygrad_peft.peft.sites import Seam, capture_seams
from tinygrad_peft.peft.targets import Targets, find_targets

__all__ = ["count_recipe"]


def count_recipe(
    model: TransformerConfig, recipe: Sequence[PeftConfig], host: Host
) -> tuple[int, int]:
    """(trainable, all) of a recipe on a model of that shape, as `get_nb_trainable_parameters`.

    No weights are needed: each method's plugin counts in closed form.

    Raises:
        TargetError: targets that the model does not have.
        PeftError: a method whose plugin does not count.
    """
    skeleton = Transformer(model, Skeleton())
    seams = capture_seams(skeleton)
    found = [find_targets(config, seams, model.model_type) for config in recipe]
    problems = [f"step {i}: {p}" for i, targets in enumerate(found) for p in targets.problems]
    if problems:
        raise TargetError(f"the recipe does not fit the model:\n{listed(problems)}")
    total = count_elements(skeleton.parameters())
    counts = [
        _count(config, targets, seams, skeleton, total, host)
        for config, targets in zip(recipe, found, strict=True)
    ]
    return sum(c.trainable for c in counts), total + sum(c.added for c in counts)


def _count(
    config: PeftConfig,
    targets: Targets,
    seams: Sequence[Seam],
    skeleton: Transformer,
    total: int,
    host: Host,
) -> ParameterCount:
    shapes = tuple(
        AffineShape(s.path, s.module.in_features, s.module.out_features, _has_bias(s.module))
        for s in seams
        if s.path in targets.paths and isinstance(s.module, Affine)
    )
    biases = sum(p.size for name, p in skeleton.named_parameters() if name.endswith("bias"))
    shape = ModelShape(skeleton.config, total, shapes, biases)
    count = host.one(hookspecs.count_parameters, config, shape)
    if count is None:
        raise PeftError(f"no plugin counts the parameters of {config.peft_type.lower()}")
    saved = sum(
        p.size for s in seams if s.path in targets.saved for _, p in s.module.own_parameters()
    )
    return ParameterCount(count.trainable + saved, count.added)


def _has_bias(module: Module) -> bool:
    return any(name == "bias" for name, _ in module.own_parameters())
