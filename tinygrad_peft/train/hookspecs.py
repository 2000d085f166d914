"""The hooks of training, for the plugins of an adapted model."""

from tinygrad_peft.host import hookspec
from tinygrad_peft.nn import Module
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.train.events import StepEnded, TrainingEnded
from tinygrad_peft.train.trainable import Stateful

__all__ = ["extra_loss", "running_state", "step_ended", "training_ended"]


def _wrong_term(term: Tensor | None, model: Module) -> str:  # noqa: ARG001 - the hook's arguments
    if term is None or term.shape == ():
        return ""
    return f"expected a scalar, got shape {term.shape}"


@hookspec(check=_wrong_term)
def extra_loss(model: Module) -> Tensor | None:
    """Return a scalar to add to the loss; None adds nothing.

    Asked once per step of the optimiser, after the last forward pass of the step, and without
    gradients after each evaluation.
    """
    raise NotImplementedError


@hookspec
def step_ended(event: StepEnded) -> None:
    """Observe a step of the optimiser: the weights are moved, and their gradients still there."""


@hookspec
def training_ended(event: TrainingEnded) -> None:
    """Observe the end of a run: the model has the weights that it keeps."""


@hookspec
def running_state(model: Module) -> Stateful | None:
    """Return the plugin's running state for this model, to be saved and restored with it."""
    raise NotImplementedError
