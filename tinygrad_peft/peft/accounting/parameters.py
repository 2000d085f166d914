"""Parameters that a recipe trains, counted from sizes alone."""

from collections.abc import Sequence

from tinygrad_peft.errors import PeftError
from tinygrad_peft.host import Host
from tinygrad_peft.nn import Skeleton, Transformer, TransformerConfig
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft.configs.base import PeftConfig, steps_of
from tinygrad_peft.peft.hook_types import ModelShape, ParameterCount
from tinygrad_peft.peft.recipes.apply import checked_targets
from tinygrad_peft.peft.recipes.size import count_step
from tinygrad_peft.peft.sites import capture_seams

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
        _require(count_step(config, found, seams, ModelShape(model, total, (), 0), host), config)
        for config, found in zip(steps, targets, strict=True)
    ]
    return sum(c.trainable for c in counts), total + sum(c.added for c in counts)


def _require(count: ParameterCount | None, config: PeftConfig) -> ParameterCount:
    if count is None:
        raise PeftError(f"no plugin counts the parameters of {config.peft_type.lower()}")
    return count
