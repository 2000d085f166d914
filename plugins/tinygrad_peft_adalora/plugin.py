"""AdaLoRA's answers to the hooks."""

from collections.abc import Sequence

from tinygrad_peft.models import equal_names
from tinygrad_peft.nn import Affine, Module
from tinygrad_peft.peft import (
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    bias_elements,
    bias_objections,
    biased_module,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.train import StepEnded
from tinygrad_peft.train import hookspecs as train_hookspecs
from tinygrad_peft_adalora.allocation import allocate, penalty, trained_layers
from tinygrad_peft_adalora.budget import Budget
from tinygrad_peft_adalora.config import AdaLoraConfig
from tinygrad_peft_adalora.layer import AdaLoraLinear
from tinygrad_peft_adalora.running_state import RunningState

__all__ = [
    "adapt_module",
    "check_recipe",
    "count_parameters",
    "extra_loss",
    "merge_module",
    "peft_methods",
    "running_state",
    "step_ended",
]


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    """AdaLoRA."""
    return [AdaLoraConfig]


@hookimpl(hookspecs.adapt_module, AdaLoraConfig)
def adapt_module(config: AdaLoraConfig, site: Site) -> Module | None:
    """Wrap a target; train the biases that `bias` asks for."""
    base = biased_module(site, config.bias)
    if not site.is_target:
        return None if base is site.module else base
    if not isinstance(base, Affine):
        return None
    budget = site.common.get(Budget, lambda: Budget(config))
    return AdaLoraLinear(base, budget, site.path, site.init)


@hookimpl(hookspecs.merge_module, AdaLoraLinear)
def merge_module(module: AdaLoraLinear) -> Module | None:
    """Return W₀ + s B (E ⊙ A), on a plain layer."""
    return module.merge()


@hookimpl(hookspecs.count_parameters, AdaLoraConfig)
def count_parameters(config: AdaLoraConfig, shape: ModelShape) -> ParameterCount:
    """Count Σ r (in + out + 1) over the targets, and the biases that are trained."""
    added = sum(config.rank(t.path) * (t.in_features + t.out_features + 1) for t in shape.targets)
    return ParameterCount(trainable=added + bias_elements(config.bias, shape), added=added)


@hookimpl(hookspecs.check_recipe)
def check_recipe(draft: Draft) -> Sequence[str]:
    """Object to biases that two steps would train, and to patterns without a target."""
    configs = dict(draft.steps(AdaLoraConfig))
    return [
        *bias_objections(draft, {i: config.bias for i, config in configs.items()}),
        *(
            f"step {i}: rank_pattern names {key}, which is not a target"
            for i, config in configs.items()
            for key in config.rank_pattern or ()
            if draft.targets[i].isdisjoint(equal_names(key.removesuffix(".lora_E")))
        ),
    ]


@hookimpl(train_hookspecs.extra_loss)
def extra_loss(model: Module) -> Tensor | None:
    """Return the penalty that keeps the singular vectors orthogonal."""
    return penalty(trained_layers(model))


@hookimpl(train_hookspecs.step_ended)
def step_ended(event: StepEnded) -> None:
    """Spend the budget of each step of the recipe."""
    for budget, layers in trained_layers(event.model).items():
        allocate(budget, layers, event.optimizer, run=event.total_steps)


@hookimpl(train_hookspecs.running_state)
def running_state(model: Module) -> RunningState:
    """Return the averages and the budget of the layers."""
    return RunningState(model)
