"""`tinygrad-peft methods`."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tinygrad_peft.cli.command import Report, command

if TYPE_CHECKING:
    from tinygrad_peft.host import PluginInfo
    from tinygrad_peft.peft import PeftConfig

__all__ = ["methods"]


@command
def methods() -> Report:
    """List the plugins, their distributions, and their methods with all settings."""
    from tinygrad_peft.peft import Host, hookspecs

    host = Host.installed()
    provided = {a.plugin.name: a.value for a in host.answers(hookspecs.peft_methods)}
    listed = [(plugin, provided.get(plugin.name, ())) for plugin in host.plugins()]
    lines = [line for plugin, kinds in listed for line in _lines(plugin, kinds)]
    return Report(
        values={"plugins": [_values(plugin, kinds) for plugin, kinds in listed]},
        lines=lines or ["no plugin is installed"],
    )


def _values(plugin: "PluginInfo", kinds: "Sequence[type[PeftConfig]]") -> dict[str, object]:
    return {
        "plugin": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "error": plugin.error or None,
        "methods": [
            {
                "name": kind.peft_type.lower(),
                "learning_rate": kind.learning_rate,
                "settings": _settings(kind),
            }
            for kind in kinds
        ],
    }


def _lines(plugin: "PluginInfo", kinds: "Sequence[type[PeftConfig]]") -> Iterator[str]:
    yield f"{plugin.name}: {plugin.distribution} {plugin.version}"
    if plugin.error:
        yield f"  cannot be used: {plugin.error}"
    for kind in kinds:
        yield f"  {kind.peft_type.lower()}{_rate(kind)}"
        yield from (f"    {name} = {default}" for name, default in _settings(kind).items())


def _settings(kind: "type[PeftConfig]") -> dict[str, str]:
    """Return the settings of a method and their defaults, as Python writes them."""
    return {field.name: _default(field) for field in dataclasses.fields(kind)}


def _rate(kind: "type[PeftConfig]") -> str:
    return "" if kind.learning_rate is None else f" (learning rate {kind.learning_rate:g})"


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "(needed)"
