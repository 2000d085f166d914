"""The optimiser and the learning rates of a run."""

import math

from tinygrad_peft.nn.module import Parameter
from tinygrad_peft.nn.optim import SGD, AdamW, Optimizer
from tinygrad_peft.nn.schedules import Schedule, constant, cosine_decay, linear_decay
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.trainable import Trainable

__all__ = ["make_optimizer", "make_schedule", "peak_rates", "step_factors"]

USUAL_LR = 1e-3  # where no method names a rate of its own


def peak_rates(config: TrainConfig, model: Trainable) -> dict[Parameter, float]:
    """Map each trained parameter of a model to its peak learning rate."""
    usual = model.learning_rates() if isinstance(model, PeftModel) else {}
    trained = (p for p in model.parameters() if p.requires_grad)
    return {p: config.lr or usual.get(p, USUAL_LR) for p in trained}


def make_optimizer(config: TrainConfig, model: Trainable) -> Optimizer:
    """Make the optimiser of all trained weights: at the highest rate, and others at a share of it.

    Raises TrainingError if nothing requires a gradient.
    """
    rates = peak_rates(config, model)
    lr = max(rates.values(), default=USUAL_LR)
    factors = {p: rate / lr for p, rate in rates.items()}
    kind = SGD if config.optimizer == "sgd" else AdamW
    return kind(model.parameters(), lr=lr, factors=factors, weight_decay=config.weight_decay)


def step_factors(optimizer: Optimizer, model: Trainable) -> tuple[float, ...]:
    """List each recipe step's share of the optimiser's rate; 0 for a step that trains nothing.

    A model without a recipe has one share, for all its weights.
    """
    if not isinstance(model, PeftModel):
        return (1.0,)
    factors = dict(zip(optimizer.parameters, optimizer.factors, strict=True))
    return tuple(
        next((factors[p] for p in added if p in factors), 0.0) for added in model.added_parameters()
    )


def make_schedule(config: TrainConfig, total: int) -> Schedule:
    """Make the multiplier of the learning rate for a run of `total` steps."""
    # A warm-up starts at rate 0, and a run of one step would have no other.
    warmup = min(math.ceil(config.warmup * total), total - 1)
    if config.schedule == "cosine":
        return cosine_decay(total, warmup)
    return constant(warmup) if config.schedule == "constant" else linear_decay(total, warmup)
