"""The conformance suite for an installed method, with the promises that a trial finds."""

from collections.abc import Mapping

import numpy as np

from tinygrad_peft.errors import PeftError
from tinygrad_peft.peft import Host, PeftConfig, parse_method
from tinygrad_peft.testing import SMALL_MODELS, Case, MethodConformance

__all__ = ["suite_of"]


def suite_of(method: str) -> type[MethodConformance]:
    """Return the suite for a method, given as on the command line.

    It promises what the method shows on the first family that it can be applied to: that it starts
    as the base, trains, merges, lengthens sequences or can be in a recipe twice. A family that it
    cannot be applied to is not promised, unless there is no other.
    """
    host = Host.installed()
    config = parse_method(method, host)
    cases = {name: Case(name, shape, config, host) for name, shape in SMALL_MODELS.items()}
    fit = {name: case for name, case in cases.items() if _can(case, [config])}
    models = {name: case.shape for name, case in (fit or cases).items()}
    found = _promises(next(iter(fit.values()))) if fit else {}
    return type("TestMethod", (MethodConformance,), {"config": config, "models": models, **found})


def _promises(case: Case) -> Mapping[str, bool]:
    base, peft = case.logits(case.base()), case.adapt(case.base())
    logits = case.logits(peft)
    return {
        "starts_as_identity": np.array_equal(logits, base),
        "trains": bool(peft.trainable_parameters()),
        "mergeable": _merges(case),
        "changes_sequence_length": logits.shape != base.shape,
        "composes_with_itself": _can(case, [case.config, case.config]),
    }


def _can(case: Case, recipe: list[PeftConfig]) -> bool:
    try:
        case.logits(case.adapt(case.base(), recipe))
    except Exception:  # noqa: BLE001 - the suite reports it
        return False
    return True


def _merges(case: Case) -> bool:
    try:
        case.trained().merge_adapter()
    except PeftError:
        return False
    return True
