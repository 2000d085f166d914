"""The conformance suite for an installed method, with the promises that a trial finds."""

from collections.abc import Mapping

import numpy as np

from tinygrad_peft.errors import ConfigError, PeftError, PluginError
from tinygrad_peft.peft import Host, PeftConfig, parse_method
from tinygrad_peft.testing import SMALL_MODELS, Case, MethodConformance

__all__ = ["suite_of"]


def suite_of(method: str) -> type[MethodConformance]:
    """Return the suite for a method, given as on the command line.

    It promises what the method shows on the first family that it can be applied to: that it starts
    as the base, trains, merges, lengthens sequences or can be in a recipe twice. A family that it
    refuses is not promised, unless there is no other; one that it fails on is.
    """
    host = Host.installed()
    config = parse_method(method, host)
    cases = {name: Case(name, shape, config, host) for name, shape in SMALL_MODELS.items()}
    fit = {name: case for name, case in cases.items() if not _refuses(case, [config])}
    models = {name: case.shape for name, case in (fit or cases).items()}
    sound = next((case for case in fit.values() if _runs(case)), None)
    found = _promises(sound) if sound is not None else {}
    return type("TestMethod", (MethodConformance,), {"config": config, "models": models, **found})


def _promises(case: Case) -> Mapping[str, bool]:
    base, peft = case.logits(case.base()), case.adapt(case.base())
    logits = case.logits(peft)
    return {
        "starts_as_identity": np.array_equal(logits, base),
        "trains": bool(peft.trainable_parameters()),
        "mergeable": _merges(case),
        "changes_sequence_length": logits.shape != base.shape,
        "composes_with_itself": not _refuses(case, [case.config, case.config]),
    }


def _refuses(case: Case, recipe: list[PeftConfig]) -> bool:
    """Return True if applying a recipe is refused. A failure is another thing: it is tested."""
    try:
        case.adapt(case.base(), recipe)
    except PluginError:
        return False
    except (PeftError, ConfigError):
        return True
    except Exception:  # noqa: BLE001 - the suite reports it
        return False
    return False


def _runs(case: Case) -> bool:
    try:
        case.logits(case.adapt(case.base()))
    except Exception:  # noqa: BLE001 - the suite reports it
        return False
    return True


def _merges(case: Case) -> bool:
    try:
        case.trained().merge_adapter()
    except PeftError:
        return False
    return True
