"""Resolved target names in an adapter's settings, for "all-linear" and for usual targets.

Hugging Face PEFT writes the resolved names, and programs that read adapters expect them. Where it
has no exclusions for a method, the remaining paths are written. recipe.json keeps the targets as
given, and the names that they were resolved to.
"""

from collections.abc import Mapping
from dataclasses import replace

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.serialisation import config_from_dict, config_to_dict
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig
from tinygrad_peft.peft.recipes.targets import ALL_LINEAR, Targets

__all__ = ["as_given", "given_targets", "with_names"]


def with_names(config: PeftConfig, found: Targets) -> PeftConfig:
    """Return the config with its targets resolved to names.

    Unchanged if other settings refer to the targets as given.
    """
    if not isinstance(config, NamedTargetsConfig):
        return config
    try:
        if config.exclude_modules and not config.file_format.exclusions:
            return replace(config, target_modules=sorted(found.paths), exclude_modules=None)
        if config.target_modules is None:
            return replace(config, target_modules=sorted(found.by_entry))
        if config.target_modules == ALL_LINEAR:
            return replace(config, target_modules=sorted(found.paths))
    except ConfigError:
        pass
    return config


def given_targets(config: PeftConfig, written: PeftConfig) -> dict[str, object] | None:
    """Return the note for recipe.json on resolved targets; None if none were resolved."""
    if not isinstance(config, NamedTargetsConfig) or not isinstance(written, NamedTargetsConfig):
        return None
    if config == written:
        return None
    names = list(written.target_modules or ())
    note: dict[str, object] = {"given": config.target_modules, "names": names}
    if config.exclude_modules != written.exclude_modules:
        note["excluded"] = config.exclude_modules
    return note


def as_given(config: PeftConfig, note: object) -> PeftConfig:
    """Return a config with its targets as given, unless their names have changed since."""
    if not isinstance(config, NamedTargetsConfig) or not isinstance(note, Mapping):
        return config
    if list(config.target_modules or ()) != note.get("names"):
        return config
    given = {"target_modules": note.get("given")}
    if "excluded" in note:
        given["exclude_modules"] = note["excluded"]
    try:
        return config_from_dict(type(config), config_to_dict(config) | given)
    except ConfigError:
        return config
