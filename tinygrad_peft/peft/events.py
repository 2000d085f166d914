"""What hooks are told: frozen, so that a hook grows by a field and never by a parameter."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tinygrad_peft.nn import Module, TransformerConfig
from tinygrad_peft.peft.config import PeftConfig

__all__ = ["AffineShape", "Applied", "Draft", "ModelShape", "ParameterCount", "StepEnded"]


@dataclass(frozen=True)
class AffineShape:
    """An affine layer by its sizes."""

    path: str
    in_features: int
    out_features: int
    has_bias: bool


@dataclass(frozen=True)
class ModelShape:
    """A model by its sizes, for one config.

    Attributes:
        config: the transformer's settings.
        total: how many parameters the base has, shared ones once.
        targets: the affine layers that the config names.
        biases: how many elements all biases have, but for those that `modules_to_save` trains.
    """

    config: TransformerConfig
    total: int
    targets: tuple[AffineShape, ...]
    biases: int


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a method trains, and how many of them come on top of the base's."""

    trainable: int
    added: int


@dataclass(frozen=True)
class Draft:
    """A recipe that is about to be applied.

    Attributes:
        model: the model, untouched.
        recipe: all steps, the innermost first.
        targets: for each step, the paths that its config names.
    """

    model: Module = field(repr=False)
    recipe: tuple[PeftConfig, ...]
    targets: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Applied:
    """A recipe that was applied."""

    model: Module = field(repr=False)
    recipe: tuple[PeftConfig, ...]
    rewritten: Sequence[str]  # the paths, in order
    adapter: str  # what it is called; its weights, if they come from a folder, are there


@dataclass(frozen=True)
class StepEnded:
    """One step of the optimiser.

    Attributes:
        step: how many steps there have been, from 1.
        epoch: how much of the training set has been seen, 1.0 being all of it once.
        loss: the mean over the step's supervised tokens or examples.
        lr: the learning rate of this step.
        grad_norm: the gradients' 2-norm before clipping.
        tokens: how many tokens were in the step, padding left out.
        seconds: how long it took.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
