"""The kit for authors of methods: a distribution to start from, and a check of a finished one."""

from tinygrad_peft.kit.new_plugin import KINDS, NewPlugin, write_plugin

__all__ = ["KINDS", "NewPlugin", "write_plugin"]
