"""The running state: what training on needs beside the weights."""

from collections.abc import Iterator, Mapping

import numpy as np

from tinygrad_peft.arrays import AnyArray, Array
from tinygrad_peft.errors import CheckpointError, listed
from tinygrad_peft.nn import Module, mismatches
from tinygrad_peft_adalora.importance import Importance
from tinygrad_peft_adalora.layer import AdaLoraLinear

__all__ = ["RunningState"]

BUDGET = "budget"  # T (0 before the first step), b₀ and t
KEPT = "kept"  # which of the triplets of the start are left


class RunningState:
    """The running state of a model's layers, by their paths in the model."""

    def __init__(self, model: Module) -> None:
        self.layers = {p: m for p, m in model.named_modules() if isinstance(m, AdaLoraLinear)}

    def state_dict(self) -> dict[str, AnyArray]:
        """Return each layer's budget (3,) and triplets (r,), and the averages of A, E and B."""
        state: dict[str, AnyArray] = {}
        for path, layer in self.layers.items():
            budget = layer.budget
            progress = (budget.total_step or 0, budget.start, budget.step)
            state[f"{path}.{BUDGET}"] = np.array(progress)
            state[f"{path}.{KEPT}"] = layer.kept
            for name in layer.triplets:
                importance = layer.importance_of(name)
                state[f"{path}.{name}.sensitivity"] = importance.sensitivity
                state[f"{path}.{name}.uncertainty"] = importance.uncertainty
        return state

    def load_state_dict(self, state: Mapping[str, AnyArray]) -> None:
        """Take over what `state_dict` gave. Raises CheckpointError if it does not fit."""
        wanted = {name: array.shape for name, array in self.state_dict().items()}
        problems = mismatches(wanted, {name: array.shape for name, array in state.items()})
        if problems := problems or list(_out_of_range(state)):
            raise CheckpointError(f"the state of AdaLoRA does not fit:\n{listed(problems)}")
        for path, layer in self.layers.items():
            total, layer.budget.start, layer.budget.step = map(int, state[f"{path}.{BUDGET}"])
            layer.budget.total_step = total or None
            layer.kept = state[f"{path}.{KEPT}"].copy()
            for name, parameter in layer.triplets.items():
                layer.importance[name] = Importance(
                    _as(parameter.data, state[f"{path}.{name}.sensitivity"]),
                    _as(parameter.data, state[f"{path}.{name}.uncertainty"]),
                )


def _out_of_range(state: Mapping[str, AnyArray]) -> Iterator[str]:
    """Yield the arrays that no training gives: averages and counts are finite and not negative."""
    for name, array in state.items():
        if not (np.isfinite(array) & (array >= 0)).all():
            yield f"{name}: expected finite numbers of at least 0"
        elif name.endswith(f".{BUDGET}") and array.dtype.kind not in "iu":
            yield f"{name}: expected whole numbers, got {array.dtype}"
        elif name.endswith(f".{KEPT}") and array.dtype != np.bool_:
            yield f"{name}: expected true or false, got {array.dtype}"


def _as(like: Array, array: AnyArray) -> Array:
    """Return a copy in the dtype of a weight."""
    return array.astype(like.dtype)
