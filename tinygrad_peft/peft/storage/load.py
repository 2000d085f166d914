"""Loading an adapter: applying a folder's recipe to a model, with the folder's weights."""

import warnings
from collections.abc import Callable, Sequence

from tinygrad_peft.errors import AdapterWarning, BaseModelWarning, CheckpointError, told
from tinygrad_peft.nn import Transformer
from tinygrad_peft.nn.finite import check_finite
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.storage.base_model import BaseName, differing_base
from tinygrad_peft.peft.storage.examination import Examination
from tinygrad_peft.peft.storage.folder import AdapterFolder
from tinygrad_peft.peft.storage.problems import raise_problems

__all__ = ["load_record", "warn_of_another_name"]


def load_record(
    folder: AdapterFolder,
    model: Transformer,
    apply: Callable[[Sequence[PeftConfig]], Record],
    *,
    allow_nonfinite: bool = False,
) -> Record:
    """Return the record of a folder's recipe on `model`, with the folder's weights.

    `apply` applies the recipe. Warns, with AdapterWarning, of settings and weights in the folder
    that somebody may not expect to be passed over, or used.

    Raises one error with all problems, of the first problem's class:
        CheckpointError: missing or broken files; another model or head; every tensor that is
            missing, unexpected, of another shape or not of floats; weights that are NaN or
            infinite, unless `allow_nonfinite`.
        ConfigError: settings that a method does not have.
        PluginError: no plugin provides a step's method.
        TargetError, PeftError: the recipe cannot be applied to the model.
    """
    applied: list[Record] = []

    def apply_and_keep(recipe: Sequence[PeftConfig]) -> Record:
        applied.append(apply(recipe))
        return applied[-1]

    try:
        examined = Examination(folder, model.config)
        examined.compare(model, apply_and_keep)
        raise_problems(folder.path, examined.problems)
        # Read all arrays before assigning any.
        found = [each for step in examined.steps if step.match for each in step.match.arrays()]
        named = ((key, array) for key, _, array in found)
        check_finite(folder.path, named, allowed=allow_nonfinite)
        for _, parameter, array in found:
            parameter.data = array
        _warn(folder, examined)
    except BaseException as error:
        for record in applied:
            record.unfreeze_base()
        if isinstance(error, MemoryError):
            raise CheckpointError(f"{folder.path} needs more memory than is available") from None
        raise
    return applied[0]


def _warn(folder: AdapterFolder, examined: Examination) -> None:
    """Warn, with AdapterWarning, of what is passed over or used though it may not be expected."""
    notes = [note for step in examined.steps for note in step.notes]
    if notes:
        warnings.warn(f"{folder.path}:{told(notes)}", AdapterWarning, stacklevel=7)


def warn_of_another_name(model: Transformer, folder: AdapterFolder) -> None:
    """Warn, with BaseModelWarning, if the folder names another base model.

    No warning for a base of another kind: loading raises an error then. The warning points at the
    line that called the caller's caller.
    """
    if differing_base(model, folder.recipe):
        return
    own = BaseName.of(model.name_or_path, model.revision)
    for step in folder.steps:
        other = BaseName.of(*step.base_name)
        if own and other and own.differs(other):
            message = f"{folder.path} was trained on {other}, and this is {own}"
            warnings.warn(message, BaseModelWarning, stacklevel=4)
            return
