"""The choice of adapters, which each context makes for itself.

A context is a thread or an asyncio task (`contextvars`). A thread begins without a choice, and a
task begins with its creator's.
"""

import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["Choice", "Choices"]


@dataclass(frozen=True)
class Choice:
    """The adapters that a context has set, None for the default; and if it has disabled them."""

    names: tuple[str, ...] | None = None
    disabled: bool = False


# One variable for all models: a variable is never freed, a model's entry is.
_chosen: ContextVar[Mapping["weakref.ref[Choices]", Choice]] = ContextVar(
    "chosen", default=MappingProxyType({})
)


class Choices:
    """The choices for one model: each context's own, and the default of all others."""

    def __init__(self, default: tuple[str, ...] = ()) -> None:
        self.default = default

    @property
    def own(self) -> Choice:
        """The choice of the calling context."""
        return _chosen.get().get(weakref.ref(self), Choice())

    @own.setter
    def own(self, choice: Choice) -> None:
        alive = {model: each for model, each in _chosen.get().items() if model() is not None}
        _chosen.set({**alive, weakref.ref(self): choice})
