"""`tinygrad-peft methods`."""

import dataclasses

from tinygrad_peft.cli.output import emit
from tinygrad_peft.peft import Host, PeftConfig, hookspecs

__all__ = ["show_methods"]


def show_methods(*, as_json: bool) -> None:
    """Print every plugin with its methods and their settings, or with its error."""
    host = Host.installed()
    provided = {a.plugin.name: a.value for a in host.answers(hookspecs.peft_methods)}
    values, lines = [], []
    for plugin in host.plugins():
        kinds = provided.get(plugin.name, ())
        values.append(
            {
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
        )
        lines.append(f"{plugin.name}: {plugin.distribution} {plugin.version}")
        lines += [f"  cannot be used: {plugin.error}"] if plugin.error else []
        for kind in kinds:
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
