"""The kit for authors of methods: a distribution to start from, and a check of a finished one."""

from tinygrad_peft.kit.check_plugin import MethodCheck, Outcome, PluginCheck, check_plugin
from tinygrad_peft.kit.new_plugin import KINDS, Kind, NewPlugin, write_plugin

__all__ = [
    "KINDS",
    "Kind",
    "MethodCheck",
    "NewPlugin",
    "Outcome",
    "PluginCheck",
    "check_plugin",
    "write_plugin",
]
