"""Settings in an adapter's file, read for weights that are trained already.

Making a config is strict. Reading one refuses what changes a number, and passes over what does
not: features that are off, and settings of the training run.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import TypeVar

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.serialisation import config_from_dict
from tinygrad_peft.peft.configs.setting_types import setting_types
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig

__all__ = ["config_in_file"]

C = TypeVar("C", bound=PeftConfig)

_OFF = (None, False, 0, "", "none")  # values of a feature that is off, beside empty ones
# An empty list of these chooses nothing and excludes nothing, as null does.
_CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")


def config_in_file(kind: type[C], values: Mapping[str, object], where: str, notes: list[str]) -> C:
    """Make a config from the settings in an adapter's file.

    Settings without effect on trained weights are passed over where they are unknown or invalid;
    `notes` gets those that somebody may have meant.

    Raises ConfigError for all others, as `config_from_dict` does.
    """
    used = _blanks_filled(kind, _acting(kind, kind.file_format.repairs(values)))
    try:
        return config_from_dict(kind, used, where)
    except ConfigError:
        useless = [key for key in kind.file_format.training_settings if key in used]
        left = {key: value for key, value in used.items() if key not in useless}
        config = config_from_dict(kind, left, where)
    for key in useless:  # keep those that are valid beside the others
        try:
            config = config_from_dict(kind, left | {key: used[key]}, where)
        except ConfigError as error:
            why = str(error).removeprefix(where).splitlines()[-1].strip(" -")
            notes.append(f"{key} has no effect on trained weights, and is passed over ({why})")
        else:
            left[key] = used[key]
    return config


def _acting(kind: type[PeftConfig], values: Mapping[str, object]) -> dict[str, object]:
    """Return the settings without unknown ones that ask for nothing."""
    form, known = kind.file_format, setting_types(kind)
    kept = {
        key: value
        for key, value in values.items()
        if key in known
        or not (
            value in _OFF
            or key in form.training_settings
            or _feature_is_off(key, values)
            or (key in form.needs and not _holds(form.needs[key], values))
        )
    }
    if issubclass(kind, NamedTargetsConfig):
        kept = {k: v for k, v in kept.items() if k not in _CHOICES or v not in ([], "")}
    if "layers_to_transform" not in kept:
        kept.pop("layers_pattern", None)
    return kept


def _feature_is_off(key: str, values: Mapping[str, object]) -> bool:
    """Return True for `feature_size` beside a `use_feature` that is off."""
    switches = (name for name in values if name.startswith("use_") and not values[name])
    return any(key.startswith(f"{switch.removeprefix('use_')}_") for switch in switches)


def _holds(needed: tuple[str, object], values: Mapping[str, object]) -> bool:
    key, value = needed
    return values.get(key) == value


def _blanks_filled(kind: type[PeftConfig], values: Mapping[str, object]) -> dict[str, object]:
    """Return the settings with null as false or as empty, for settings that cannot be null."""
    hints, useless = setting_types(kind), kind.file_format.training_settings
    filled = dict(values)
    for key in [key for key, value in values.items() if value is None and key in hints]:
        filled[key] = _blank(hints[key])
        if filled[key] is None and key in useless:
            del filled[key]
    return filled


def _blank(hint: object) -> object:
    """Return the value of a type that null stands for: false, an empty value, or null itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    origins = [typing.get_origin(each) or each for each in kinds]
    if type(None) in origins:
        return None
    if bool in origins:
        return False
    if Mapping in origins:
        return {}
    return [] if Sequence in origins else None
