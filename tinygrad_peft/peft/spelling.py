"""Targets by name in an adapter's settings, where what was given stands for others.

Hugging Face PEFT writes the names that a method's usual targets or "all-linear" come to, and what
reads adapters elsewhere expects them. recipe.json keeps what was given, and for which names.
"""

from collections.abc import Mapping
from dataclasses import replace

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.peft.config import NamedTargetsConfig, PeftConfig
from tinygrad_peft.peft.targets import ALL_LINEAR, Targets

__all__ = ["as_given", "given_targets", "spelt_out"]


def spelt_out(config: PeftConfig, found: Targets) -> PeftConfig:
    """The config with the names of its targets, if it leaves them to others.

    It stays as it is where other settings name some of the targets as they were given.
    """
    if not isinstance(config, NamedTargetsConfig):
        return config
    if config.target_modules not in (None, ALL_LINEAR):
        return config
    names = found.by_entry if config.target_modules is None else found.paths
    try:
        return replace(config, target_modules=sorted(names))
    except ConfigError:
        return config


def given_targets(config: PeftConfig, written: PeftConfig) -> dict[str, object] | None:
    """What recipe.json notes of a step whose targets were spelt out; None if they were not."""
    if not isinstance(config, NamedTargetsConfig) or not isinstance(written, NamedTargetsConfig):
        return None
    if config.target_modules == written.target_modules:
        return None
    return {"given": config.target_modules, "names": list(written.target_modules or ())}


def as_given(config: PeftConfig, note: object) -> PeftConfig:
    """A config that was read with the targets that were given, unless its names are others now."""
    if not isinstance(config, NamedTargetsConfig) or not isinstance(note, Mapping):
        return config
    given, names = note.get("given"), config.target_modules
    if given not in (None, ALL_LINEAR) or list(names or ()) != note.get("names"):
        return config
    return replace(config, target_modules=given)
