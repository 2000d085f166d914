"""`tinygrad-peft methods`."""

import dataclasses

from tinygrad_peft.cli.output import emit
from tinygrad_peft.peft import Host, PeftConfig

__all__ = ["show_methods"]


def show_methods(*, as_json: bool) -> None:
    """Print every plugin with its methods and their settings."""
    plugins = Host.installed().plugins()
    values = [
        {
            "plugin": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "methods": [
                {
                    "name": kind.peft_type.lower(),
                    "learning_rate": kind.learning_rate,
                    "settings": _settings(kind),
                }
                for kind in plugin.methods
            ],
        }
        for plugin in plugins
    ]
    lines = []
    for plugin in plugins:
        lines.append(f"{plugin.name}: {plugin.distribution} {plugin.version}")
        for kind in plugin.methods:
            lines.append(f"  {kind.peft_type.lower()}{_rate(kind)}")
            lines += [f"    {name} = {default}" for name, default in _settings(kind).items()]
    emit({"plugins": values}, lines or ["no plugin is installed"], as_json=as_json)


def _settings(kind: type[PeftConfig]) -> dict[str, str]:
    """The settings of a method and their defaults, as Python writes them."""
    return {field.name: _default(field) for field in dataclasses.fields(kind)}


def _rate(kind: type[PeftConfig]) -> str:
    return "" if kind.learning_rate is None else f" (learning rate {kind.learning_rate:g})"


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "(needed)"
