"""FileFormat: the names and rules of a method's files in Hugging Face PEFT's layout."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from tinygrad_peft.arrays import Shape

__all__ = ["PREFIX", "FileFormat", "Shapes"]

C_contra = TypeVar("C_contra", contravariant=True)

PREFIX = "base_model.model"  # PEFT wraps the model twice
Shapes: TypeAlias = Mapping[str, Shape]


def _as_written(settings: Mapping[str, object]) -> Mapping[str, object]:
    return settings


def _no_problems(_config: object, _shapes: Shapes) -> Sequence[str]:
    return ()


def _nothing_idle(_config: object, _paths: Collection[str]) -> Sequence[str]:
    return ()


@dataclass(frozen=True, kw_only=True)
class FileFormat(Generic[C_contra]):
    """The names and rules of a method's files. A config class sets one as `file_format`.

    Attributes:
        prefix: the prefix of the paths of the model's modules.
        ignored_settings: the values, other than null, false and empty ones, that PEFT writes for
            features that no model here has.
        training_settings: the settings, of the class or of PEFT alone, that have no effect on
            trained weights: in a file, a value that cannot be used here is passed over.
        needs: for a setting of PEFT alone, another one and the value without which it has no
            effect: ("use_qalora", True).
        exclusions: True if PEFT has `exclude_modules` for the method. If False, the remaining
            targets are written by their paths.
        tensor_key: returns a parameter's name in the file, for the path of its module and its name
            there. By default, `prefix`, path and name.
        repairs: repairs settings that PEFT writes but cannot read back.
        checks: lists contradictions between the settings and the shapes in a file. The shapes are
            keyed by name, without "base_model.model.".
        idle: lists settings without effect where the method adapts these paths: an objection to a
            new adapter, and a note on a stored one.
        ranks: returns the rank at a path, for `inspect`.
        llama_cpp: lists the reasons why llama.cpp cannot convert tensors of these names, for
            `inspect`.
    """

    prefix: str = PREFIX
    ignored_settings: Mapping[str, object] = field(default_factory=dict)
    training_settings: Collection[str] = ()
    needs: Mapping[str, tuple[str, object]] = field(default_factory=dict)
    exclusions: bool = True
    tensor_key: Callable[[str, str], str] | None = None
    repairs: Callable[[Mapping[str, object]], Mapping[str, object]] = _as_written
    checks: Callable[[C_contra, Shapes], Sequence[str]] = _no_problems
    idle: Callable[[C_contra, Collection[str]], Sequence[str]] = _nothing_idle
    ranks: Callable[[C_contra, str], int] | None = None
    llama_cpp: Callable[[C_contra, Collection[str]], Sequence[str]] | None = None

    def key(self, path: str, name: str) -> str:
        """Return the name in a file of the parameter `name` of the module at `path`."""
        if self.tensor_key is not None:
            return self.tensor_key(path, name)
        return self.plain_key(path, name)

    def plain_key(self, path: str, name: str) -> str:
        """Return the name of a parameter that the base has as well, as in a copied module."""
        return f"{self.prefix}.{path}.{name}"
