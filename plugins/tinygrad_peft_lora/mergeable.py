"""The base class of LoRA's modules that fold into plain ones."""

from tinygrad_peft.nn import Module

__all__ = ["Mergeable"]


class Mergeable(Module):
    """A module of LoRA's that may have a plain one with the same output."""

    def merge(self) -> Module | None:
        """Return the plain module; None where what it wraps is not plain itself."""
        raise NotImplementedError
