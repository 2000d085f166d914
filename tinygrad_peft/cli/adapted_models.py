"""Models with their adapters, as commands name them."""

from pathlib import Path

from tinygrad_peft.cli.sources import adapter_path, model_path
from tinygrad_peft.errors import CheckpointError, ConfigError
from tinygrad_peft.models import load_model
from tinygrad_peft.nn import Skeleton, Transformer
from tinygrad_peft.nn.heads import require_one_class
from tinygrad_peft.peft import DEFAULT, AdapterFolder, PeftModel, raise_problems
from tinygrad_peft.train.examples import Task

__all__ = ["load_adapted", "load_described", "read_folder", "task_of", "with_adapter"]


def load_adapted(
    model: str | Path,
    adapter: Path | AdapterFolder | None,
    *,
    name: str = DEFAULT,
    allow_nonfinite: bool = False,
) -> Transformer | PeftModel:
    """Load a model, and apply an adapter as `name`, with the head that it was trained with."""
    place = model if isinstance(model, Path) else model_path(model)
    base = load_model(place, allow_nonfinite=allow_nonfinite)
    if adapter is None:
        return base
    peft = with_adapter(base, adapter, name=name, allow_nonfinite=allow_nonfinite)
    peft.release_base()
    return peft


def with_adapter(
    base: Transformer,
    adapter: Path | AdapterFolder,
    *,
    name: str = DEFAULT,
    is_trainable: bool = False,
    allow_nonfinite: bool = False,
) -> PeftModel:
    """Apply an adapter to a model as `name`, with the head that it was trained with."""
    folder = adapter
    if not isinstance(folder, AdapterFolder):
        folder = AdapterFolder.read(adapter_path(folder))
    head = folder.head()
    if head is not None and not head.is_on(base):
        head.give(base)
    return PeftModel.from_pretrained(
        base,
        folder,
        adapter_name=name,
        is_trainable=is_trainable,
        allow_nonfinite=allow_nonfinite,
    )


def load_described(
    adapter: Path | AdapterFolder, model: str | None, *, name: str = DEFAULT
) -> PeftModel:
    """Load an adapter in its model, or without one in the shapes that its folder describes.

    Raises CheckpointError without a model and a description of it.
    """
    if model is not None:
        adapted = load_adapted(model, adapter, name=name)
        assert isinstance(adapted, PeftModel)
        return adapted
    folder = adapter if isinstance(adapter, AdapterFolder) else read_folder(adapter)
    if folder.base is None:
        raise CheckpointError(f"{folder.path} does not describe its model: expected --model")
    return PeftModel.from_pretrained(
        Transformer(folder.base, Skeleton()), folder, adapter_name=name
    )


def read_folder(adapter: Path) -> AdapterFolder:
    """Return an adapter's folder. Raises CheckpointError for any other folder."""
    folder = AdapterFolder.read(adapter)
    raise_problems(adapter, folder.problems)
    return folder


def task_of(model: Transformer | PeftModel) -> Task:
    """Return the task that a model's head is for.

    Raises ConfigError for a bare encoder, and for a head whose texts have no class each.
    """
    head = model.config.head
    if head == "classification":
        require_one_class(model.config)
    if head == "none":
        raise ConfigError(
            "a bare encoder has nothing to evaluate: name the --adapter with its head"
        )
    return "causal-lm" if head == "lm" else "sequence-classification"
