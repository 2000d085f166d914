"""The hooks of training, for the plugins of an adapted model."""

import sys

import pluggy

from tinygrad_peft.nn import Module
from tinygrad_peft.peft import Host
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.train.events import StepEnded, TrainingEnded
from tinygrad_peft.train.trainable import Stateful

__all__ = ["extra_loss", "running_state", "step_ended", "training_ended"]

_spec = pluggy.HookspecMarker("tinygrad_peft")


@_spec
def extra_loss(model: Module) -> Tensor | None:
    """Return a scalar to add to the loss; None adds nothing.

    Asked once per step of the optimiser, after the last forward pass of the step, and without
    gradients after each evaluation.
    """
    raise NotImplementedError


@_spec
def step_ended(event: StepEnded) -> None:
    """Observe a step of the optimiser: the weights are moved, and their gradients still there."""


@_spec
def training_ended(event: TrainingEnded) -> None:
    """Observe the end of a run: the model has the weights that it keeps."""


@_spec
def running_state(model: Module) -> Stateful | None:
    """Return the plugin's running state for this model, to be saved and restored with it."""
    raise NotImplementedError


Host.add_hookspecs(sys.modules[__name__])
