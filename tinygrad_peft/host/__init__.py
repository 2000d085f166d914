"""Hooks and plugins: `hookspec` declares a hook, `hookimpl` answers it, a `Host` asks all plugins.

The floors above declare their own hooks, and nothing here knows them.
"""

from tinygrad_peft.host.entry_points import leaving_out
from tinygrad_peft.host.host import Host
from tinygrad_peft.host.marks import hookimpl, hookspec
from tinygrad_peft.host.plugins import Answer, PluginInfo

__all__ = ["Answer", "Host", "PluginInfo", "hookimpl", "hookspec", "leaving_out"]
