"""The terms that plugins add to the loss."""

import math
from collections.abc import Mapping

from tinygrad_peft.errors import PluginError, TrainingError
from tinygrad_peft.nn.module import Module
from tinygrad_peft.peft import Host
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.train import hookspecs

__all__ = ["extra_losses", "finite_values"]


def extra_losses(host: Host | None, model: Module) -> dict[str, Tensor]:
    """Ask the plugins for their terms of the loss: scalars by the plugins' names.

    Raises PluginError for an answer that is not a scalar tensor.
    """
    if host is None:
        return {}
    terms = host.by_plugin(hookspecs.extra_loss, model)
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.shape != ():
            got = f"shape {term.shape}" if isinstance(term, Tensor) else repr(term)
            raise PluginError(f"extra_loss of {name!r}: expected a scalar tensor, got {got}")
    return terms


def finite_values(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the terms as numbers. Raises TrainingError that names all that are not finite."""
    values = {name: term.item() for name, term in terms.items()}
    wrong = [f"{v} of {name!r}" for name, v in values.items() if not math.isfinite(v)]
    if wrong:
        raise TrainingError(f"expected finite extra losses, got {', '.join(wrong)}")
    return values
