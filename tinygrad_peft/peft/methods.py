"""The methods that plugins provide, by name, and what to say of one that is not there."""

from collections.abc import Mapping

from tinygrad_peft.errors import listed
from tinygrad_peft.host import Host
from tinygrad_peft.peft import hookspecs
from tinygrad_peft.peft.config import PeftConfig

__all__ = ["broken_plugins", "methods_of"]


def methods_of(host: Host) -> Mapping[str, type[PeftConfig]]:
    """Return every method by its name in lower case, sorted."""
    kinds = (kind for answer in host.each(hookspecs.peft_methods) for kind in answer)
    return dict(sorted((kind.peft_type.lower(), kind) for kind in kinds))


def broken_plugins(host: Host) -> str:
    """Return the end of a message about a missing method: the broken plugins, if any."""
    broken = [info for info in host.plugins() if info.error]
    if not broken:
        return ""
    # An error that names the plugin itself needs no title.
    errors = (i.error if i.title in i.error else f"{i.title}: {i.error}" for i in broken)
    found = listed(" ".join(error.split()) for error in errors)
    return f"\nplugins that might provide it and cannot be used:\n{found}"
