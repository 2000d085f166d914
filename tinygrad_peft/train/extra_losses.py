"""The terms that plugins add to the loss."""

import math
from collections.abc import Mapping

from tinygrad_peft.errors import TrainingError
from tinygrad_peft.host import Host
from tinygrad_peft.nn.module import Module
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.train import hookspecs

__all__ = ["extra_losses", "finite_values"]


def extra_losses(host: Host | None, model: Module) -> dict[str, Tensor]:
    """Ask the plugins for their terms of the loss: scalars by the plugins' names.

    Several terms of one plugin are added up.
    """
    terms: dict[str, Tensor] = {}
    for answer in host.answers(hookspecs.extra_loss, model) if host is not None else ():
        name, term = answer.plugin.name, answer.value
        terms[name] = terms[name] + term if name in terms else term
    return terms


def finite_values(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the terms as numbers. Raises TrainingError that names all that are not finite."""
    values = {name: term.item() for name, term in terms.items()}
    wrong = [f"{v} of {name!r}" for name, v in values.items() if not math.isfinite(v)]
    if wrong:
        raise TrainingError(f"expected finite extra losses, got {', '.join(wrong)}")
    return values
