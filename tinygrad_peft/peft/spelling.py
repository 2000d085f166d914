"""Targets by name in an adapter's settings, where what was given stands for others.

Hugging Face PEFT writes the names that a method's usual targets or "all-linear" come to, and what
reads adapters elsewhere expects them. For some methods it knows of no exclusions: then the paths
that are left are written. recipe.json keeps what was given, and for which names.
"""

from collections.abc import Mapping
from dataclasses import replace

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.peft.config import NamedTargetsConfig, PeftConfig
from tinygrad_peft.peft.settings import config_from_dict, config_to_dict
from tinygrad_peft.peft.targets import ALL_LINEAR, Targets

__all__ = ["as_given", "given_targets", "spelt_out"]


def spelt_out(config: PeftConfig, found: Targets) -> PeftConfig:
    """The config with the names of its targets, if it leaves them to others.

    It stays as it is where other settings name some of the targets as they were given.
    """
    if not isinstance(config, NamedTargetsConfig):
        return config
    try:
        if config.exclude_modules and not config.exclusions_in_file:
            return replace(config, target_modules=sorted(found.paths), exclude_modules=None)
        if config.target_modules is None:
            return replace(config, target_modules=sorted(found.by_entry))
        if config.target_modules == ALL_LINEAR:
            return replace(config, target_modules=sorted(found.paths))
    except ConfigError:
        pass
    return config


def given_targets(config: PeftConfig, written: PeftConfig) -> dict[str, object] | None:
    """What recipe.json notes of a step whose targets were spelt out; None if they were not."""
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
    """A config that was read with the targets that were given, unless its names are others now."""
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
